"""Contrastive loss of pairs of vectors: similar ones should be near each other, others at least a margin apart, features last.

Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006: (1 - target) d^2 / 2 + target max(0,
margin - d)^2 / 2, with d the Euclidean distance of input1 and input2. The target is the paper's: 0 where a pair is similar, 1 where it is
not. Numbers between the two weigh both parts.
"""

from losscomp.language import Hinge, Loss, Norm, Sum, axis, named, param, tensor

features = axis("features")
input1 = tensor("input1", features)
input2 = tensor("input2", features)
target = tensor("target", between=(0, 1), fixed=True)
margin = param("margin", default=1.0, positive=True)

f = features.index()
# The difference has a name in one of the two parts only, so that derivatives do not join them: at small distances they would cancel.
distance = named("distance", Norm(named("difference", input1[f] - input2[f]), f))

contrastive_loss = Loss(
    (1 - target) * Sum((input1[f] - input2[f]) ** 2, f) / 2 + target / 2 * Hinge(margin - distance, tie=0) ** 2,
    module="ContrastiveLoss",
    signature="input1 input2 target margin reduction",
)
