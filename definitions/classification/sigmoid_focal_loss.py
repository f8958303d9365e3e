"""Focal loss of a logit: binary cross-entropy, times how wrong the prediction is to the power gamma.

Lin et al., Focal loss for dense object detection, 2017; see torchvision.ops.sigmoid_focal_loss. With p = sigmoid(input) and q the
probability of the other class, 1 - p where the target is 1: alpha_t q^gamma times the cross-entropy. A negative alpha weighs nothing.
"""

from losscomp.language import Eq, If, Loss, Piecewise, exp, log, param, stop_gradient, tensor

input = tensor("input")
target = tensor("target", between=(0, 1), fixed=True, shape="same")
alpha = param("alpha", default=0.25)
gamma = param("gamma", default=2.0, nonnegative=True)

t = stop_gradient(target)
p = 1 / (1 + exp(-input))
# In logarithms, so that no power of a q that vanishes is taken, and none of its derivatives.
log_q = Piecewise((log(1 - p), Eq(target, 1)), (log(p), Eq(target, 0)), (log(t * (1 - p) + (1 - t) * p), True))
entropy = -Piecewise((log(p), Eq(target, 1)), (log(1 - p), Eq(target, 0)), (t * log(p) + (1 - t) * log(1 - p), True))
alpha_t = If(alpha < 0, 1, alpha * t + (1 - alpha) * (1 - t))

sigmoid_focal_loss = Loss(
    alpha_t * exp(If(Eq(gamma, 0), 0, gamma * log_q)) * entropy,
    like="torchvision.ops.sigmoid_focal_loss",
    signature="input target alpha gamma reduction",
    default="none",
    notes=("target is a label: the derivative by it is 0.",),
)
