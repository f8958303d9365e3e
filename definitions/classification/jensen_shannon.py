"""Jensen-Shannon divergence of two distributions, given as log-probabilities: the entropy of their mixture less their mean entropy.

With p = exp(target), q = exp(input) and m = beta p + (1 - beta) q it is beta KL(p || m) + (1 - beta) KL(q || m) (Lin, Divergence measures
based on the Shannon entropy, 1991; liger_kernel.transformers.functional.liger_jsd), which is beta p log p + (1 - beta) q log q - m log m
added up. As in kl_div this is one term a cell, and reduction="batchmean" gives the divergence itself. With beta 0 or 1 it is 0, where Liger
has a Kullback-Leibler divergence.
"""

from losscomp.language import Loss, exp, log, oo, param, tensor

input = tensor("input", between=(-oo, 0))
target = tensor("target", between=(-oo, 0), fixed=True)
beta = param("beta", default=0.5, between=(0, 1))

mixture = beta * exp(target) + (1 - beta) * exp(input)

jensen_shannon = Loss(
    beta * exp(target) * target + (1 - beta) * exp(input) * input - mixture * log(mixture),
    signature="input target beta reduction",
    reductions=("none", "mean", "sum", "batchmean"),
)
