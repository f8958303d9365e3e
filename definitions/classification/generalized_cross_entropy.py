"""Generalized cross-entropy of logits: (1 - p_t**q) / q, with p_t the probability of the label.

Zhang and Sabuncu, Generalized cross entropy loss for training deep neural networks with noisy labels, 2018. It is cross_entropy as q goes
to 0 and 1 - p_t with q = 1. The mean divides by the sum of the weights of the labels not ignored.
"""

from losscomp.language import Loss, base, exp, log, param

focal = base("classification/focal_loss.py")
target, weight = focal.target, focal.weight
q = param("q", default=0.7, positive=True)

generalized_cross_entropy = Loss(
    weight[target] * (1 - exp(q * log(focal.p))) / q,
    mean_over=weight[target],
    signature="input target q weight ignore_index reduction",
)
