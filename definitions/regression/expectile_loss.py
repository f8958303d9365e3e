"""Expectile loss: the constant that minimises it is an expectile of the targets (Newey and Powell, 1987).

expectile (target - input)**2 where the input is too low, (1 - expectile) (input - target)**2 where it is not, without a factor 1/2:
an expectile of 0.5 is half the squared error. The mean of weighted errors divides by their number.
"""

from losscomp.language import Loss, Where, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
expectile = param("expectile", default=0.5, between=(0, 1))
weight = tensor("weight", optional=True, shape="same")

error = input - target
expectile_loss = Loss(
    weight * Where(error < 0, expectile, 1 - expectile) * error**2,
    module="ExpectileLoss",
    module_signature="reduction expectile",
    signature="input target reduction expectile weight",
)
