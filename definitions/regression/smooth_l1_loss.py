"""Smooth L1 loss: quadratic within beta, linear beyond, with slope 1 (Girshick, Fast R-CNN, 2015).

With beta = 0 it is the L1 loss.
"""

from losscomp.language import Abs, Eq, Loss, Piecewise, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
beta = param("beta", default=1.0, nonnegative=True, special=(0,))

error = input - target
smooth_l1_loss = Loss(
    Piecewise(
        (Abs(error), Eq(beta, 0)),
        (error**2 / (2 * beta), Abs(error) < beta),
        (Abs(error) - beta / 2, True),
    ),
    like="torch.nn.functional.smooth_l1_loss",
    module="SmoothL1Loss",
    signature="input target size_average reduce reduction beta",
)
