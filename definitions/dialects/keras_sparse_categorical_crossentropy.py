"""Sparse categorical cross-entropy as keras.losses has it: probabilities clipped, then divided by their sum; classes last.

    loss = -log(p_y / sum(p)),  p = y_pred moved into [epsilon, 1 - epsilon]; with from_logits, p = exp(y_pred)

Source: keras/src/losses/losses.py and keras/src/backend/tensorflow/nn.py, which gives the logarithms of the clipped probabilities to a
softmax cross-entropy. Labels that equal ignore_class are left out, of the mean too.
"""

from losscomp.language import Difference, Eq, If, Loss, Sum, Where, axis, base, clip, index, log, option, param, reused, tensor

keras = base("_keras.py")
torch = base("classification/cross_entropy.py")

classes = axis("classes")
y_true = index("y_true", into=classes, ignore="ignore_class")
y_pred = tensor("y_pred", classes)
from_logits = option("from_logits", default=False)
epsilon = param("epsilon", default=1e-7, between=(0, 0.5))

c = classes.index()


def of(input):
    """The cross-entropy of logits that are a function of the index."""
    return reused(torch.cross_entropy.forms[0], {torch.classes: classes}, input=input, target=y_true, weight=lambda c: 1, label_smoothing=0)


def clipped(c):
    """A probability, as keras counts it."""
    return clip(y_pred[c], epsilon, 1 - epsilon)


others = Sum(Where(Eq(c, y_true), 0, clipped(c)), c)                     # added up without p_y, which may be nearly all
keras_sparse_categorical_crossentropy = Loss(
    If(from_logits, of(lambda c: y_pred[c]), log(1 + others / clipped(y_true))),
    like="keras.losses.sparse_categorical_crossentropy",
    signature="y_true y_pred from_logits ignore_class reduction epsilon",
    dialect_of="cross_entropy",
    plain=If(from_logits, of(lambda c: y_pred[c]), of(lambda c: log(y_pred[c]))),
    differences=(
        Difference("clip", "probabilities nearer to 0 or 1 than epsilon count as epsilon, without a gradient",
                   (If(from_logits, False, (y_pred[c] < epsilon) | (y_pred[c] > 1 - epsilon)), c)),
    ),
    **keras.COMMON,
)
