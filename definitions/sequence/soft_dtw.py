"""Soft dynamic time warping of two sequences under squared Euclidean distance (Cuturi and Blondel, 2017).

r[i, j] is the soft minimum of the cost of all alignments of the first i + 1 and j + 1 points.
"""

from losscomp.language import LogAddExp, Loss, Sum, axis, length, oo, param, state, tensor

left, right, features = axis("left"), axis("right"), axis("features")
x, y = tensor("input", left, features), tensor("target", right, features)
x_length, y_length = length("input_lengths", of=left), length("target_lengths", of=right)
smoothing = param("smoothing", default=1.0, positive=True)

i, j, f = axis("rows", extent=x_length).index(), axis("columns", extent=y_length).index(), features.index()

r = state("r", i, j, outside=oo, start={(-1, -1): 0})
nearest = LogAddExp(-r[i - 1, j] / smoothing, -r[i, j - 1] / smoothing, -r[i - 1, j - 1] / smoothing)
r[i, j] = Sum((x[i, f] - y[j, f])**2, f) - smoothing * nearest

soft_dtw = Loss(
    r[x_length - 1, y_length - 1],
    tables=(r,),
    notes=("It may be negative: a loss of two equal sequences is below 0.",
           "Two sequences of length 0 have the loss 0; one of length 0 and a longer one have the loss inf."),
)
