"""Multi-class margin loss: the score of the label should exceed every other one by a margin (Crammer and Singer, 2001).

See torch.nn.functional.multi_margin_loss. The mean over all classes of the hinges of the others, to the power 1 or 2, classes last.
"""

from losscomp.language import Eq, Hinge, If, Loss, Piecewise, Sum, axis, index, named, param, tensor

classes = axis("classes", vector=True)
input = tensor("input", classes)
target = index("target", into=classes)
p = param("p", default=1, only=(1, 2))
margin = param("margin", default=1.0)
weight = tensor("weight", classes, per_sample=False, optional=True)

c = classes.index()
short = named("short", Hinge(margin - (input[target] - input[c]), tie=0))
power = Piecewise((short, Eq(p, 1)), (short**2, True))

multi_margin_loss = Loss(
    weight[target] * Sum(If(Eq(c, target), 0, power), c) / classes.size,
    like="torch.nn.functional.multi_margin_loss",
    module="MultiMarginLoss",
    signature="input target p margin weight size_average reduce reduction",
    notes=(
        "NaN in the scores gives NaN; PyTorch drops it.",
        "The mean of no samples is NaN and the sum 0; in PyTorch both are whatever was in memory.",
        "Second derivatives, float16 and bfloat16 are there; in PyTorch they are not. weight has a derivative.",
    ),
)
