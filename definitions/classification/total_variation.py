"""Total variation distance of two rows of probabilities: half the sum of abs(input - target) over the classes, classes in dimension 1.

With q any distribution this is the largest difference of the probabilities that the two give to one event (Levin and Peres, Markov chains
and mixing times, 4.1); see liger_kernel.transformers.functional.liger_tvd.
"""

from losscomp.language import Abs, Loss, Sum, axis, tensor

classes = axis("classes", position=1)
input = tensor("input", classes)
target = tensor("target", classes, fixed=True)

c = classes.index()
total_variation = Loss(
    Sum(Abs(input[c] - target[c]), c) / 2,
    signature="input target reduction",
)
