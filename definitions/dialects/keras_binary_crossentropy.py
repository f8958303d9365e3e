"""Binary cross-entropy as keras.losses has it: clipped probabilities, smoothed labels, the mean over the last axis.

    loss = mean over the last axis of -(t log(p) + (1 - t) log(1 - p)),  t = y_true (1 - label_smoothing) + label_smoothing / 2,
    p = y_pred moved into [epsilon, 1 - epsilon] in the type of the arrays; with from_logits, p = sigmoid(y_pred)

Source: keras/src/losses/losses.py and keras/src/backend/tensorflow/nn.py. The clip passes the gradient inside its bounds and at them, and
is 0 outside. The type of the arrays counts: in float32 the upper bound is 1 - 2**-23.
"""

from losscomp.language import Difference, If, Loss, base, clip, option, param, reused

keras = base("_keras.py")
logits = base("classification/binary_cross_entropy_with_logits.py")
probabilities = base("classification/binary_cross_entropy.py")

from_logits = option("from_logits", default=False)
label_smoothing = param("label_smoothing", default=0.0, between=(0, 1))
epsilon = param("epsilon", default=1e-7, between=(0, 0.5))

t = keras.t * (1 - label_smoothing) + label_smoothing / 2
p = clip(keras.p, epsilon, 1 - epsilon)
of_logits = reused(logits.binary_cross_entropy_with_logits, input=keras.p, target=t, weight=1, pos_weight=1)
of_p = logits.binary_cross_entropy_with_logits.value.xreplace({logits.p: p})
of_probabilities = reused(of_p, target=t, weight=1, pos_weight=1)

keras_binary_crossentropy = Loss(
    keras.mean(If(from_logits, of_logits, of_probabilities)),
    like="keras.losses.binary_crossentropy",
    signature="y_true y_pred from_logits label_smoothing sample_weight reduction epsilon",
    dialect_of="binary_cross_entropy",
    plain=keras.mean(If(
        from_logits,
        reused(logits.binary_cross_entropy_with_logits, input=keras.p, target=keras.t, weight=1, pos_weight=1),
        reused(probabilities.binary_cross_entropy, input=keras.p, target=keras.t, weight=1),
    )),
    differences=(
        Difference("clip", "probabilities nearer to 0 or 1 than epsilon count as epsilon, without a gradient; PyTorch clamps logarithms "
                   "at -100, and its gradient goes on", (If(from_logits, False, (keras.p < epsilon) | (keras.p > 1 - epsilon)), keras.c)),
        Difference("smoothing", "labels are moved towards 1/2 by label_smoothing, which PyTorch has not", label_smoothing > 0),
    ),
    **keras.COMMON,
)
