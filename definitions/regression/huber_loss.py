"""Huber loss: quadratic within delta, linear beyond, with slope delta (Huber, 1964).

The mean of weighted errors divides by their number, not by the sum of the weights.
"""

from losscomp.language import Abs, Loss, Piecewise, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
delta = param("delta", default=1.0, positive=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
huber_loss = Loss(
    weight * Piecewise((error**2 / 2, Abs(error) < delta), (delta * (Abs(error) - delta / 2), True)),
    like="torch.nn.functional.huber_loss",
    module="HuberLoss",
    module_signature="reduction delta",
    signature="input target reduction delta weight",
)
