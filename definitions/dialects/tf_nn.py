"""Cross-entropies of logits as tf.nn has them: labels first, no reduction, classes last (tensorflow/python/ops/nn_impl.py, nn_ops.py).

    sigmoid, weighted: -(q labels log(p) + (1 - labels) log(1 - p)),  p = sigmoid(logits), q = pos_weight or 1
    softmax: -sum over c of labels_c log(softmax(logits)_c); its gradient is softmax(logits) - labels whatever labels add up to
    sparse: -log(softmax(logits)_labels)
"""

from losscomp.language import Difference, LogSumExp, Loss, Ne, Sum, axis, base, index, reused, stop_gradient, straight_through, tensor

sigmoid = base("classification/binary_cross_entropy_with_logits.py")
torch = base("classification/cross_entropy.py")

classes = axis("classes")
labels, logits = tensor("labels", fixed=True, shape="same"), tensor("logits")
pos_weight = tensor("pos_weight", fixed=True, shape="expand")
rows, row_logits = tensor("labels", classes, fixed=True), tensor("logits", classes)
label = index("labels", into=classes)

c = classes.index()
usual = {"axes": {torch.classes: classes}, "weight": lambda c: 1, "input": lambda c: row_logits[c], "label_smoothing": 0}
softmax = reused(torch.cross_entropy.forms[1], target=lambda c: rows[c], **usual)
sparse = reused(torch.cross_entropy.forms[0], target=label, **usual)
logsumexp = LogSumExp(row_logits[c], c)
labels_total = Sum(rows[c], c)
# The gradient by labels is -log(softmax(logits)); its derivative by logits is that of the gradient by logits by labels, -1 at the label.
moves_as = logsumexp - Sum(rows[c] * row_logits[c], c) + (labels_total - 1) * stop_gradient(logsumexp)


def dialect(value, name, doc, plain=None, of="cross_entropy", signature="labels logits reduction", **fields):
    """A loss of tf.nn."""
    return Loss(value, like=f"tensorflow.nn.{name}", doc=doc, default="none", dialect_of=of, plain=value if plain is None else plain,
                signature=signature, **fields)


given = {"input": logits, "target": labels, "weight": 1}
tf_sigmoid_cross_entropy_with_logits = dialect(
    reused(sigmoid.binary_cross_entropy_with_logits, **given, pos_weight=1), "sigmoid_cross_entropy_with_logits",
    "Binary cross-entropy of a logit as tf.nn has it: labels first, no reduction.",
    of="binary_cross_entropy_with_logits")
tf_weighted_cross_entropy_with_logits = dialect(
    reused(sigmoid.binary_cross_entropy_with_logits, **given, pos_weight=pos_weight), "weighted_cross_entropy_with_logits",
    "Binary cross-entropy of a logit, positive labels weighted, as tf.nn has it: labels first, no reduction.",
    of="binary_cross_entropy_with_logits",
    signature="labels logits pos_weight reduction")
tf_softmax_cross_entropy_with_logits = dialect(
    straight_through(softmax, moves_as), "softmax_cross_entropy_with_logits", "Cross-entropy of logits and class probabilities as tf.nn "
    "has it: labels first, classes last, the gradient softmax(logits) - labels.", softmax,
    differences=(Difference("sum of labels", "the gradient is softmax(logits) - labels also where labels do not add up to 1; that of the "
                            "value is softmax(logits) sum(labels) - labels", Ne(labels_total, 1)),))
tf_sparse_softmax_cross_entropy_with_logits = dialect(
    sparse, "sparse_softmax_cross_entropy_with_logits", "Cross-entropy of logits and a class index as tf.nn has it: labels first, classes "
    "last, no reduction.")
