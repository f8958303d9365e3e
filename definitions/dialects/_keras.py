"""What Keras's losses share: rows of y_true and y_pred along the last axis, and a weight for each row (keras/src/losses/loss.py).

The functions of Keras give one number a row; the classes divide the sum by the number of rows, whatever the weights are.
"""

from losscomp.language import Sum, axis, tensor

features = axis("features")
y_true = tensor("y_true", features, fixed=True)
y_pred = tensor("y_pred", features)
sample_weight = tensor("sample_weight", optional=True, shape="expand")

c = features.index()
t, p = y_true[c], y_pred[c]
COMMON = {"default": "none", "module_default": "sum_over_batch_size", "words": {"sum_over_batch_size": "mean"}}


def total(cell):
    """The weighted sum over the last axis."""
    return sample_weight * Sum(cell, c)


def mean(cell):
    """The weighted mean over the last axis."""
    return total(cell) / features.size
