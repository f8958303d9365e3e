"""Quantile or pinball loss: the constant that minimises it is a quantile of the targets (Koenker and Bassett, 1978).

quantile (target - input) where the input is too low, (1 - quantile) (input - target) where it is not; so the derivative is 1 - quantile
where they are equal, as in XGBoost and LightGBM. The mean of weighted errors divides by their number.
"""

from losscomp.language import Loss, Where, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
quantile = param("quantile", default=0.5, between=(0, 1))
weight = tensor("weight", optional=True, shape="same")

error = input - target
quantile_loss = Loss(
    weight * Where(error < 0, -quantile, 1 - quantile) * error,
    module="QuantileLoss",
    module_signature="reduction quantile",
    signature="input target reduction quantile weight",
)
