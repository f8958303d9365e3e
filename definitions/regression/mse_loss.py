"""Mean squared error (torch.nn.functional.mse_loss).

The mean of weighted errors divides by the sum of the weights.
"""

from losscomp.language import Loss, tensor

input = tensor("input")
target = tensor("target", fixed=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
mse_loss = Loss(
    weight * error**2,
    mean_over=weight,
    like="torch.nn.functional.mse_loss",
    module="MSELoss",
    module_signature="size_average reduce reduction",
    signature="input target size_average reduce reduction weight",
)
