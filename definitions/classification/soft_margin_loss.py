"""Soft margin loss: the logistic loss of a label that is 1 or -1 (torch.nn.functional.soft_margin_loss)."""

from losscomp.language import Loss, exp, log, tensor

input = tensor("input")
target = tensor("target", fixed=True, shape="expand")

soft_margin_loss = Loss(
    log(1 + exp(-target * input)),
    like="torch.nn.functional.soft_margin_loss",
    module="SoftMarginLoss",
    signature="input target size_average reduce reduction",
    notes=(
        "Where target * input is below -89 in float32, value and gradient stay exact; PyTorch overflows to inf and NaN.",
        "target has a derivative; in PyTorch it has none.",
    ),
)
