"""Negative log-likelihood of a gamma distribution with a predicted mean (XGBoost reg:gamma, LightGBM gamma).

log(mean) + target / mean, for the shape 1: other shapes multiply it, and add terms of the target alone. Half the gamma deviance is this
less log(target) + 1. `input` is the logarithm of the mean, or the mean itself, which is clamped to at least eps as in gaussian_nll_loss.
"""

from losscomp.language import If, Loss, Max, exp, log, option, param, straight_through, tensor

input = tensor("input")
target = tensor("target", nonnegative=True, fixed=True)
log_input = option("log_input", default=True)
eps = param("eps", default=1e-6, nonnegative=True)

mean = straight_through(Max(input, eps, tie=1), input)
gamma_nll_loss = Loss(
    If(log_input, input + target * exp(-input), log(mean) + target / mean),
    module="GammaNLLLoss",
    module_signature="log_input eps reduction",
    signature="input target log_input eps reduction",
)
