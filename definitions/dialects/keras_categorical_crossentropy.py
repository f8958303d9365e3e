"""Categorical cross-entropy as keras.losses has it: rows divided by their sum, then clipped; classes last.

    loss = -sum over c of t_c log(p_c),  t = y_true (1 - label_smoothing) + label_smoothing / classes,
    p_c = y_pred_c / sum(y_pred) moved into [epsilon, 1 - epsilon]; with from_logits, p = softmax(y_pred)

Source: keras/src/losses/losses.py and keras/src/backend/tensorflow/nn.py.
"""

from losscomp.language import Difference, If, Loss, Sum, base, clip, log, option, param, reused, tensor

keras = base("_keras.py")
torch = base("classification/cross_entropy.py")

from_logits = option("from_logits", default=False)
label_smoothing = param("label_smoothing", default=0.0, between=(0, 1))
epsilon = param("epsilon", default=1e-7, between=(0, 0.5))
_log_p = tensor("log_p", torch.classes)

share = keras.p / Sum(keras.p, keras.c)
p = clip(share, epsilon, 1 - epsilon)
usual = {"axes": {torch.classes: keras.features}, "weight": lambda c: 1, "target": lambda c: keras.y_true[c]}
of_log_p = torch.expected(lambda c: _log_p[c])


def at(expr):
    """A cell of the last axis as a function of the index."""
    return lambda c: expr.xreplace({keras.c: c})


def of_logits(smoothing):
    """The loss of logits."""
    return reused(torch.cross_entropy.forms[1], **usual, input=lambda c: keras.y_pred[c], label_smoothing=smoothing)


keras_categorical_crossentropy = Loss(
    keras.sample_weight * If(from_logits, of_logits(label_smoothing),
                             reused(of_log_p, **usual, log_p=at(log(p)), label_smoothing=label_smoothing)),
    like="keras.losses.categorical_crossentropy",
    signature="y_true y_pred from_logits label_smoothing sample_weight reduction epsilon",
    dialect_of="cross_entropy",
    plain=keras.sample_weight * If(from_logits, of_logits(label_smoothing),
                                   reused(of_log_p, **usual, log_p=at(log(keras.p)), label_smoothing=label_smoothing)),
    differences=(
        Difference("sum", "rows are divided by their sum, and the gradient is that of the quotient",
                   If(from_logits, False, Sum(keras.p, keras.c) >= 0)),
        Difference("clip", "shares nearer to 0 or 1 than epsilon count as epsilon, without a gradient",
                   (If(from_logits, False, (share < epsilon) | (share > 1 - epsilon)), keras.c)),
    ),
    **keras.COMMON,
)
