"""Multi-label soft margin loss: the mean over classes of the binary cross-entropy of logits, classes last.

See torch.nn.functional.multilabel_soft_margin_loss. The labels are 0 or 1.
"""

from losscomp.language import Loss, Sum, axis, exp, log, tensor

classes = axis("classes")
input = tensor("input", classes)
target = tensor("target", classes, fixed=True)
weight = tensor("weight", classes, optional=True)

c = classes.index()
p = 1 / (1 + exp(-input[c]))
multilabel_soft_margin_loss = Loss(
    -Sum(weight[c] * (target[c] * log(p) + (1 - target[c]) * log(1 - p)), c) / classes.size,
    like="torch.nn.functional.multilabel_soft_margin_loss",
    module="MultiLabelSoftMarginLoss",
    signature="input target weight size_average reduce reduction",
)
