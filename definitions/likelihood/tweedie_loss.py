"""Negative log-likelihood of a Tweedie distribution, of sums of gamma-distributed claims (Tweedie, 1984; XGBoost reg:tweedie).

mean**(2 - power) / (2 - power) - target mean**(1 - power) / (1 - power), less terms of the target alone: half the Tweedie deviance. A
power of 1 is a Poisson, one of 2 a gamma distribution. `input` is the logarithm of the mean, or the mean itself, clamped to at least eps,
below which the slope is 0.
"""

from losscomp.language import Eq, If, Loss, Piecewise, Where, exp, log, option, param, tensor

input = tensor("input")
target = tensor("target", nonnegative=True, fixed=True)
power = param("power", default=1.5, between=(1, 2), special=(1, 2))
log_input = option("log_input", default=True)
eps = param("eps", default=1e-6, nonnegative=True)

of_log = Piecewise(
    (exp(input) - target * input, Eq(power, 1)),
    (input + target * exp(-input), Eq(power, 2)),
    (exp((2 - power) * input) / (2 - power) - target * exp((1 - power) * input) / (1 - power), True),
)
of_mean = lambda mean: Piecewise(
    (mean - target * log(mean), Eq(power, 1)),
    (log(mean) + target / mean, Eq(power, 2)),
    (mean ** (2 - power) / (2 - power) - target * mean ** (1 - power) / (1 - power), True),
)
tweedie_loss = Loss(
    If(log_input, of_log, Where(input < eps, of_mean(eps), of_mean(input))),
    module="TweedieLoss",
    module_signature="power log_input eps reduction",
    signature="input target power log_input eps reduction",
)
