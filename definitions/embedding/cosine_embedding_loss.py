"""Cosine embedding loss: pulls vectors together where the target is 1, pushes them apart where it is -1, features last.

See torch.nn.functional.cosine_embedding_loss. Any other target gives 0. Each squared norm has 1e-12 added, in single precision.
"""

from losscomp.language import Eq, Hinge, Loss, Norm, Piecewise, Rational, Sum, axis, named, param, tensor

features = axis("features")
input1 = tensor("input1", features)
input2 = tensor("input2", features)
target = tensor("target", fixed=True)
margin = param("margin", default=0.0)

EPS = Rational(9.999999960041972e-13)
f = features.index()
unit1 = named("unit1", input1[f] / Norm(input1[f], f, plus=EPS))
unit2 = named("unit2", input2[f] / Norm(input2[f], f, plus=EPS))
cosine = Sum(unit1 * unit2, f)

cosine_embedding_loss = Loss(
    Piecewise((1 - cosine, Eq(target, 1)), (Hinge(cosine - margin, tie=1), Eq(target, -1)), (0, True)),
    like="torch.nn.functional.cosine_embedding_loss",
    module="CosineEmbeddingLoss",
    signature="input1 input2 target margin size_average reduce reduction",
)
