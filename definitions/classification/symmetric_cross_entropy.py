"""Symmetric cross-entropy of logits: alpha times the cross-entropy, and beta times that with prediction and label exchanged.

Wang et al., Symmetric cross entropy for robust learning with noisy labels, 2019. The reverse one takes the logarithm of the label's
one-hot row, with log(0) replaced by log_zero, so that it is -log_zero (1 - p_t). The mean is that of cross_entropy.
"""

from losscomp.language import Loss, base, log, param

focal = base("classification/focal_loss.py")
target, weight = focal.target, focal.weight
alpha = param("alpha", default=1.0, nonnegative=True)
beta = param("beta", default=1.0, nonnegative=True)
log_zero = param("log_zero", default=-4.0)

symmetric_cross_entropy = Loss(
    weight[target] * (-alpha * log(focal.p) - beta * log_zero * (1 - focal.p)),
    mean_over=weight[target],
    signature="input target alpha beta log_zero weight ignore_index reduction",
)
