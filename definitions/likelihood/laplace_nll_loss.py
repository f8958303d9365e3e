"""Negative log-likelihood of a Laplace distribution with a predicted scale b, the mean absolute deviation.

log(b) + abs(input - target) / b; `full` adds log(2). b is clamped to at least eps as in gaussian_nll_loss: the clamp passes the gradient
through, as if it were not there.
"""

from losscomp.language import Abs, If, Loss, Max, log, option, param, straight_through, tensor

input = tensor("input")
target = tensor("target", fixed=True)
b = tensor("b", nonnegative=True, shape="reduced")
full = option("full", default=False)
eps = param("eps", default=1e-6, nonnegative=True)

deviation = straight_through(Max(b, eps, tie=1), b)
laplace_nll_loss = Loss(
    log(deviation) + Abs(input - target) / deviation + If(full, log(2), 0),
    module="LaplaceNLLLoss",
    module_signature="* full eps reduction",
    signature="input target b full eps reduction",
)
