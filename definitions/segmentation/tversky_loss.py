"""Tversky loss of probabilities of pixels: 1 - (overlap + smooth) / (overlap + alpha FP + beta FN + smooth).

Salehi et al., Tversky loss function for image segmentation, 2017; see keras.losses.Tversky. The overlap is the sum of input * target over
the last axis, FP is the sum of input * (1 - target) and FN that of (1 - input) * target.
"""

from losscomp.language import Loss, Sum, axis, param, tensor

pixels = axis("pixels")
input = tensor("input", pixels, between=(0, 1))
target = tensor("target", pixels, between=(0, 1), fixed=True)
alpha = param("alpha", default=0.5, nonnegative=True)
beta = param("beta", default=0.5, nonnegative=True)
smooth = param("smooth", default=1.0, nonnegative=True)

i = pixels.index()
p, t = input[i], target[i]
overlap = Sum(p * t, i)
false_positive, false_negative = Sum(p * (1 - t), i), Sum((1 - p) * t, i)

tversky_loss = Loss(
    1 - (overlap + smooth) / (overlap + alpha * false_positive + beta * false_negative + smooth),
    signature="input target alpha beta smooth reduction",
)
