"""Negative log-likelihood of a Gaussian with a predicted variance (Nix and Weigend, 1994).

The variance is clamped to at least eps; the clamp passes the gradient through, as if it were not there.
"""

from losscomp.language import If, Loss, Max, log, option, param, pi, straight_through, tensor

input = tensor("input")
target = tensor("target", fixed=True)
var = tensor("var", nonnegative=True, shape="reduced")
full = option("full", default=False)
eps = param("eps", default=1e-6, nonnegative=True)

variance = straight_through(Max(var, eps, tie=1), var)
gaussian_nll_loss = Loss(
    (log(variance) + (input - target) ** 2 / variance) / 2 + If(full, log(2 * pi) / 2, 0),
    like="torch.nn.functional.gaussian_nll_loss",
    module="GaussianNLLLoss",
    module_signature="* full eps reduction",
    signature="input target var full eps reduction",
)
