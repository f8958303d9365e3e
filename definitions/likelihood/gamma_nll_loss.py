"""Negative log-likelihood of a gamma distribution with a predicted mean (XGBoost reg:gamma, LightGBM gamma).

log(mean) + target / mean, for the shape 1: other shapes multiply it, and add terms of the target alone. Half the gamma deviance is this
less log(target) + 1. `input` is the logarithm of the mean, or the mean itself, clamped to at least eps, below which the slope is 0.
"""

from losscomp.language import If, Loss, Where, exp, log, option, param, tensor

input = tensor("input")
target = tensor("target", nonnegative=True, fixed=True)
log_input = option("log_input", default=True)
eps = param("eps", default=1e-6, nonnegative=True)

of_mean = lambda mean: log(mean) + target / mean
gamma_nll_loss = Loss(
    If(log_input, input + target * exp(-input), Where(input < eps, of_mean(eps), of_mean(input))),
    module="GammaNLLLoss",
    module_signature="log_input eps reduction",
    signature="input target log_input eps reduction",
)
