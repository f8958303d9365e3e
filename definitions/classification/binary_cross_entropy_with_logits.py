"""Binary cross-entropy of a logit (torch.nn.functional.binary_cross_entropy_with_logits)."""

from losscomp.language import Loss, exp, log, tensor

input = tensor("input")
target = tensor("target", fixed=True, shape="same")
weight = tensor("weight", optional=True, shape="expand")
pos_weight = tensor("pos_weight", optional=True, shape="expand")

p = 1 / (1 + exp(-input))
binary_cross_entropy_with_logits = Loss(
    -weight * (pos_weight * target * log(p) + (1 - target) * log(1 - p)),
    like="torch.nn.functional.binary_cross_entropy_with_logits",
    module="BCEWithLogitsLoss",
    signature="input target weight size_average reduce reduction pos_weight",
    notes=("weight and pos_weight have derivatives; in PyTorch they have none.",),
)
