"""Jaccard loss of probabilities of pixels: 1 - (overlap + smooth) / (union + smooth), sums over the last axis.

Rahman and Wang, Optimizing intersection-over-union in deep neural networks for image segmentation, 2016. The overlap is the sum of
input * target, the union the sum of input + target - input * target.
"""

from losscomp.language import Loss, base, reused

tversky = base("tversky_loss.py")

jaccard_loss = Loss(
    reused(tversky.tversky_loss, alpha=1, beta=1),
    signature="input target smooth reduction",
)
