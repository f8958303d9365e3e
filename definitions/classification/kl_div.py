"""Kullback-Leibler divergence of a target distribution from predicted log-probabilities (torch.nn.functional.kl_div).

One term of the divergence a cell: reduction="batchmean" gives the divergence itself.
"""

from losscomp.language import If, Loss, exp, option, tensor, xlogy

input = tensor("input")
target = tensor("target", fixed=True)
log_target = option("log_target", default=False)

kl_div = Loss(
    If(log_target, exp(target) * (target - input), xlogy(target, target) - target * input),
    like="torch.nn.functional.kl_div",
    module="KLDivLoss",
    signature="input target size_average reduce reduction log_target",
    reductions=("none", "mean", "sum", "batchmean"),
    notes=("The derivative by target is -inf at target = 0; in PyTorch it is NaN.",),
)
