"""The losses of tf.compat.v1.losses: labels first, weights, and a mean that divides by the number of weights that are not 0.

    mean = sum(weights loss) / count(weights != 0)   (SUM_BY_NONZERO_WEIGHTS, the default reduction)

Source: tensorflow/python/ops/losses/losses_impl.py. Where all weights are 0 TensorFlow's mean is 0, and this one is NaN.
"""

from losscomp.language import Difference, Eq, Hinge, If, Loss, Ne, axis, base, param, reused, tensor

classes = axis("classes")
labels, predictions = tensor("labels", fixed=True, shape="same"), tensor("predictions")
multi_class_labels, logits = tensor("multi_class_labels", fixed=True, shape="same"), tensor("logits")
onehot_labels, row_logits = tensor("onehot_labels", classes, fixed=True), tensor("logits", classes)
weights = tensor("weights", optional=True, shape="expand")
delta = param("delta", default=1.0, positive=True)
label_smoothing = param("label_smoothing", default=0.0, between=(0, 1))

sigmoid = base("classification/binary_cross_entropy_with_logits.py")
softmax = base("classification/cross_entropy.py")
ranking = base("embedding/margin_ranking_loss.py")
error = {"input": predictions, "target": labels, "weight": 1}
smoothed = multi_class_labels * (1 - label_smoothing) + label_smoothing / 2
of_sigmoid = lambda t: reused(sigmoid.binary_cross_entropy_with_logits, input=logits, target=t, weight=1, pos_weight=1)
of_softmax = reused(softmax.cross_entropy.forms[1], {softmax.classes: classes}, input=lambda c: row_logits[c],
                    target=lambda c: onehot_labels[c], weight=lambda c: 1, label_smoothing=label_smoothing)


def dialect(name, of, value, signature, over=1, plain=None, differences=()):
    """A loss of tf.compat.v1.losses; `over` is what the base adds to the denominator of the mean."""
    weighed = Difference("mean", "the mean divides by the number of weights that are not 0", Ne(If(Ne(weights, 0), 1, 0), over), mean=True)
    return Loss(weights * value, mean_over=If(Ne(weights, 0), 1, 0), like=f"tensorflow.compat.v1.losses.{name}", signature=signature,
                doc=f"{name} as tf.compat.v1.losses has it: labels first, the mean over the weights that are not 0.", dialect_of=of,
                plain=weights * (value if plain is None else plain), plain_mean_over=over, differences=(weighed, *differences),
                words={"sum_by_nonzero_weights": "mean"})


SMOOTHING = Difference("smoothing", "labels are moved towards 1/2 by label_smoothing", label_smoothing > 0)
TIE = Difference("hinge", "labels are 0 and 1, and the gradient at the margin is 0", Ne(labels, 1) | Eq(logits, 1))
BY_PREDICTIONS, BY_LOGITS = "labels predictions weights reduction", "labels logits weights reduction"
l1, mse, huber = base("regression/l1_loss.py"), base("regression/mse_loss.py"), base("regression/huber_loss.py")

tf1_absolute_difference = dialect("absolute_difference", "l1_loss", reused(l1.l1_loss, **error), BY_PREDICTIONS, weights)
tf1_mean_squared_error = dialect("mean_squared_error", "mse_loss", reused(mse.mse_loss, **error), BY_PREDICTIONS, weights)
tf1_huber_loss = dialect("huber_loss", "huber_loss", reused(huber.huber_loss, **error, delta=delta), f"{BY_PREDICTIONS} delta")
tf1_sigmoid_cross_entropy = dialect(
    "sigmoid_cross_entropy", "binary_cross_entropy_with_logits", of_sigmoid(smoothed),
    "multi_class_labels logits weights reduction label_smoothing", 1, of_sigmoid(multi_class_labels), (SMOOTHING,))
tf1_softmax_cross_entropy = dialect("softmax_cross_entropy", "cross_entropy", of_softmax,
                                    "onehot_labels logits weights reduction label_smoothing")
tf1_hinge_loss = dialect("hinge_loss", "margin_ranking_loss", Hinge(1 - (2 * labels - 1) * logits, tie=0), BY_LOGITS, 1,
                         reused(ranking.margin_ranking_loss, input1=logits, input2=0, target=labels, margin=1), (TIE,))
