"""Jaccard loss of probabilities of pixels: 1 - (overlap + smooth) / (union + smooth), sums over the last axis.

Rahman and Wang, Optimizing intersection-over-union in deep neural networks for image segmentation, 2016. The overlap is the sum of
input * target, the union the sum of input + target - input * target: all of the target, and what the input has beside it.
"""

from losscomp.language import Loss, base, named

tversky = base("tversky_loss.py")
overlap, smooth = tversky.overlap, tversky.smooth
target_size = named("target_size", overlap + tversky.false_negative)

jaccard_loss = Loss(
    1 - (overlap + smooth) / (target_size + tversky.false_positive + smooth),
    signature="input target smooth reduction",
)
