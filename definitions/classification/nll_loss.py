"""Negative log-likelihood of a class index, given log-probabilities (torch.nn.functional.nll_loss).

The mean divides by the sum of the weights of the labels that are not ignored.
"""

from losscomp.language import Loss, axis, index, tensor

classes = axis("classes", position=1)
input = tensor("input", classes)
target = index("target", into=classes, ignore="ignore_index")
weight = tensor("weight", classes, per_sample=False, optional=True)

nll_loss = Loss(
    -weight[target] * input[target],
    mean_over=weight[target],
    like="torch.nn.functional.nll_loss",
    module="NLLLoss",
    aliases=("NLLLoss2d",),
    signature="input target weight size_average ignore_index reduce reduction",
    notes=("weight has a derivative; in PyTorch it has none.",),
)
