"""Pseudo-Huber loss: a Huber loss without a joint (Charbonnier et al., 1997; Hartley and Zisserman, 2003; XGBoost reg:pseudohubererror).

delta**2 (sqrt(1 + (error / delta)**2) - 1): half the squared error where that is small, slope delta where it is large. The mean of
weighted errors divides by their number.
"""

from losscomp.language import Loss, param, sqrt, tensor

input = tensor("input")
target = tensor("target", fixed=True)
delta = param("delta", default=1.0, positive=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
pseudo_huber_loss = Loss(
    weight * delta**2 * (sqrt(1 + (error / delta) ** 2) - 1),
    module="PseudoHuberLoss",
    module_signature="reduction delta",
    signature="input target reduction delta weight",
)
