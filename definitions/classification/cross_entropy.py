"""Cross-entropy of logits against a class index or class probabilities (torch.nn.functional.cross_entropy).

With an index, the mean divides by the sum of the weights of the labels that are not ignored, with smoothing too; with
probabilities, by the number of samples. Probabilities need not add up to 1.
"""

from losscomp.language import Loss, Overload, Sum, axis, exp, index, log, param, table, tensor

classes = axis("classes", position=1)
input = tensor("input", classes)
label = index("target", into=classes, ignore="ignore_index")
target = tensor("target", classes, fixed=True, shape="same")
weight = tensor("weight", classes, per_sample=False, optional=True)
smoothing = param("label_smoothing", default=0.0, between=(0, 1), special=(0,))

c = classes.index()
log_p = table("log_p", c, log(exp(input[c]) / Sum(exp(input[c]), c)))
smoothed = (1 - smoothing) * target[c] + smoothing / classes.size


def expected(log_p):
    """The cross-entropy of the smoothed target probabilities and the probabilities with these logarithms."""
    return -Sum(weight[c] * smoothed * log_p(c), c)


cross_entropy = Overload(
    Loss(
        -(1 - smoothing) * weight[label] * log_p(label) - smoothing / classes.size * Sum(weight[c] * log_p(c), c),
        mean_over=weight[label],
    ),
    Loss(expected(log_p)),
    like="torch.nn.functional.cross_entropy",
    module="CrossEntropyLoss",
    signature="input target weight size_average ignore_index reduce reduction label_smoothing",
    notes=(
        "A negative label_smoothing is an error; PyTorch ignores it.",
        "weight has a derivative with an index too; in PyTorch it has one only with probabilities.",
    ),
)
