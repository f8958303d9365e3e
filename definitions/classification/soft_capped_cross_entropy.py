"""Cross-entropy of logits that are capped smoothly, with a z-loss: what large language models are trained with.

    logits = softcap * tanh(input / softcap)                                 (Gemma 2, 2024; none where softcap is inf)
    loss = cross_entropy(logits, target) + lse_square_scale * logsumexp(logits)**2       (PaLM, Chowdhery et al., 2022)

The names are those of liger_kernel.transformers.functional.liger_cross_entropy. The mean is over the labels that are not ignored.
"""

from losscomp.language import Eq, If, LogSumExp, Loss, base, oo, param, reused, tanh

plain = base("classification/cross_entropy.py")
softcap = param("softcap", default=30.0, positive=True, special=(oo,))
lse_square_scale = param("lse_square_scale", default=0.0, nonnegative=True)


def capped(c):
    """The logit of a class, below softcap in size."""
    return If(Eq(softcap, oo), plain.input[c], softcap * tanh(plain.input[c] / softcap))


entropy = reused(plain.cross_entropy.forms[0], weight=lambda c: 1, input=capped)

soft_capped_cross_entropy = Loss(
    entropy + lse_square_scale * LogSumExp(capped(plain.c), plain.c)**2,
    signature="input target ignore_index reduction label_smoothing lse_square_scale softcap",
)
