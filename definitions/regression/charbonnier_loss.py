"""Charbonnier loss: the L1 loss with a rounded corner (Charbonnier et al., 1994; Lai et al., LapSRN, 2017).

sqrt(error**2 + eps**2); eps is how wide the corner is. The mean of weighted errors divides by their number.
"""

from losscomp.language import Loss, param, sqrt, tensor

input = tensor("input")
target = tensor("target", fixed=True)
eps = param("eps", default=1e-3, positive=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
charbonnier_loss = Loss(
    weight * sqrt(error**2 + eps**2),
    module="CharbonnierLoss",
    module_signature="reduction eps",
    signature="input target reduction eps weight",
)
