"""Focal loss of class logits: cross-entropy, times the probability of the other classes to the power gamma.

Lin et al., Focal loss for dense object detection, 2017, for several classes: -weight[t] (1 - p_t)^gamma log p_t with p the softmax of
input. With gamma = 0 it is cross_entropy, whose mean it has: it divides by the sum of the weights of the labels not ignored.
"""

from losscomp.language import Eq, If, LogSumExp, Loss, axis, exp, index, log, named, oo, param, tensor

classes = axis("classes", position=1)
input = tensor("input", classes)
target = index("target", into=classes, ignore="ignore_index")
weight = tensor("weight", classes, per_sample=False, optional=True)
gamma = param("gamma", default=2.0, nonnegative=True)

c = classes.index()
# The label against all others together is a choice of two: a logit, whose sigmoid is the label's probability.
odds = named("odds", input[target] - LogSumExp(If(Eq(c, target), -oo, input[c]), c))
p = 1 / (1 + exp(-odds))

focal_loss = Loss(
    -weight[target] * exp(If(Eq(gamma, 0), 0, gamma * log(1 - p))) * log(p),
    mean_over=weight[target],
    signature="input target gamma weight ignore_index reduction",
)
