"""Triplet margin loss: the positive should be nearer to the anchor than the negative, by a margin, features last.

Balntas et al., Learning local feature descriptors with triplets and shallow convolutional neural networks, 2016. `swap`
takes the distance between positive and negative where that is the smaller one.
"""

from losscomp.language import Hinge, If, Loss, Min, Norm, Rational, axis, named, oo, option, param, tensor

features = axis("features")
anchor = tensor("anchor", features)
positive = tensor("positive", features)
negative = tensor("negative", features)
margin = param("margin", default=1.0, positive=True)
p = param("p", default=2.0, nonnegative=True, special=(0, 1, 2, oo))
eps = param("eps", default=1e-6, nonnegative=True)
swap = option("swap", default=False)

f = features.index()
# Each difference is one piece, so that eps is added to it: added to a vector first, it would be lost in rounding.
near = Norm(named("to_positive", anchor[f] - positive[f]) + eps, f, p)
far = Norm(named("to_negative", anchor[f] - negative[f]) + eps, f, p)
across = Norm(named("between", positive[f] - negative[f]) + eps, f, p)

triplet_margin_loss = Loss(
    Hinge(margin + near - If(swap, Min(far, across, tie=Rational(1, 2)), far), tie=1),
    like="torch.nn.functional.triplet_margin_loss",
    module="TripletMarginLoss",
    signature="anchor positive negative margin p eps swap size_average reduce reduction",
    same_ndim=True,
    notes=("A negative p or eps is an error; PyTorch computes with it.",),
)
