"""Dice loss of probabilities of pixels: 1 - (2 overlap + smooth) / (sum of input + sum of target + smooth), sums over the last axis.

Milletari et al., V-Net, 2016, with plain sums below; see keras.losses.Dice and optax.losses.binary_dice_loss. The overlap is the sum of
input * target, so that the divisor is twice the overlap and what each of the two has alone.
"""

from losscomp.language import Loss, Rational, base, param, reused

tversky = base("tversky_loss.py")
half = Rational(1, 2)
smooth = param("smooth", default=1.0, nonnegative=True)

dice_loss = Loss(
    reused(tversky.tversky_loss, alpha=half, beta=half, smooth=smooth / 2),
    signature="input target smooth reduction",
)
