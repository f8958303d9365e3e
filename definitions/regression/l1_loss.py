"""L1 loss: the absolute error (torch.nn.functional.l1_loss).

The mean of weighted errors divides by the sum of the weights.
"""

from losscomp.language import Abs, Loss, tensor

input = tensor("input")
target = tensor("target", fixed=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
l1_loss = Loss(
    weight * Abs(error),
    mean_over=weight,
    like="torch.nn.functional.l1_loss",
    module="L1Loss",
    module_signature="size_average reduce reduction",
    signature="input target size_average reduce reduction weight",
)
