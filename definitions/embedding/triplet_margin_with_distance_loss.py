"""Triplet margin loss with a distance of the caller's: the positive should be nearer to the anchor than the negative, by a margin.

See torch.nn.functional.triplet_margin_with_distance_loss. Without a function the distance is Euclidean, with 1e-6 added to each
difference, features last. triplet_distance_loss is the same of distances that are known; `swap` takes the distance between positive
and negative where that is the smaller one.
"""

from losscomp.language import Computed, Hinge, If, Loss, Min, Norm, Rational, axis, named, option, param, tensor

features = axis("features")
anchor = tensor("anchor", features)
positive = tensor("positive", features)
negative = tensor("negative", features)
near = tensor("to_positive")
far = tensor("to_negative")
across = tensor("between", optional=True)
margin = param("margin", default=1.0, positive=True)
swap = option("swap", default=False)

f = features.index()
EPS = Rational(1, 10**6)


def shortfall(near, far, across):
    return Hinge(margin + near - If(swap, Min(far, across, tie=Rational(1, 2)), far), tie=1)


triplet_margin_with_distance_loss = Loss(
    shortfall(
        Norm(named("to_positive", anchor[f] - positive[f]) + EPS, f),
        Norm(named("to_negative", anchor[f] - negative[f]) + EPS, f),
        Norm(named("between", positive[f] - negative[f]) + EPS, f),
    ),
    computed=Computed(
        "distance_function",
        loss="triplet_distance_loss",
        tensors={"to_positive": "anchor positive", "to_negative": "anchor negative", "between": "positive negative"},
        when={"between": "swap"},
    ),
    like="torch.nn.functional.triplet_margin_with_distance_loss",
    module="TripletMarginWithDistanceLoss",
    signature="anchor positive negative * distance_function margin swap reduction",
    same_ndim=True,
    notes=("Without a function the class form keeps None, and computes the distance itself; PyTorch's has a PairwiseDistance.",),
)
triplet_distance_loss = Loss(shortfall(near, far, across), signature="to_positive to_negative between margin swap reduction")
