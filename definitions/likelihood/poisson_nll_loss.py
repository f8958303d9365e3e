"""Negative log-likelihood of a Poisson distribution (torch.nn.functional.poisson_nll_loss).

`input` is the rate, or its logarithm with log_input. `full` adds Stirling's approximation of log(target!), where target > 1.
"""

from losscomp.language import If, Loss, exp, log, option, param, pi, tensor

input = tensor("input")
target = tensor("target", fixed=True)
log_input = option("log_input", default=True)
full = option("full", default=False)
eps = param("eps", default=1e-8, nonnegative=True)

nll = If(log_input, exp(input) - target * input, input - target * log(input + eps))
stirling = target * log(target) - target + log(2 * pi * target) / 2
poisson_nll_loss = Loss(
    nll + If(full, If(target > 1, stirling, 0), 0),
    like="torch.nn.functional.poisson_nll_loss",
    module="PoissonNLLLoss",
    forward="log_input target",
    signature="input target log_input full size_average eps reduce reduction",
    notes=("With full=True the gradient by target is finite at target = 0; in PyTorch it is NaN.",),
)
