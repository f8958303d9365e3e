"""Log-cosh loss: the logarithm of the hyperbolic cosine of the error (keras.losses.LogCosh, optax.losses.log_cosh).

Half the squared error where that is small, the absolute error less log(2) where it is large. The mean of weighted errors divides by
their number.
"""

from sympy import cosh

from losscomp.language import Loss, log, tensor

input = tensor("input")
target = tensor("target", fixed=True)
weight = tensor("weight", optional=True, shape="same")

error = input - target
log_cosh_loss = Loss(
    weight * log(cosh(error)),
    module="LogCoshLoss",
    module_signature="reduction",
    signature="input target reduction weight",
)
