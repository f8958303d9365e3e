"""Multi-label margin loss: the score of each label should exceed that of every class that is no label by 1.

See torch.nn.functional.multilabel_margin_loss. The labels of a sample are positions, up to the first -1; one that is there twice counts
twice. The sum of the hinges over all pairs is divided by the number of classes, which come last.
"""

from losscomp.language import Eq, Hinge, If, Loss, Sum, axis, labels, tensor

classes = axis("classes", vector=True)
input = tensor("input", classes)
target = labels("target", into=classes, until=-1)

label, other = classes.index(), classes.index()
short = Hinge(1 - (input[label] - input[other]), tie=0)
shortfall = Sum(If(Eq(target[other], 0), short, 0), other)

multilabel_margin_loss = Loss(
    Sum(If(Eq(target[label], 0), 0, target[label] * shortfall), label) / classes.size,
    like="torch.nn.functional.multilabel_margin_loss",
    module="MultiLabelMarginLoss",
    signature="input target size_average reduce reduction",
    notes=(
        "NaN in the scores gives NaN; PyTorch drops it.",
        "The mean of no samples is NaN and the sum 0; in PyTorch both are whatever was in memory.",
        "Second derivatives, float16 and bfloat16 are there; in PyTorch they are not.",
        "The kernels of the C and CUDA libraries, and the torch operators, take how often each class is a label.",
    ),
)
