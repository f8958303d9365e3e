"""Margin ranking loss: input1 should exceed input2 by a margin where the target is 1, and the reverse where it is -1.

See torch.nn.functional.margin_ranking_loss.
"""

from losscomp.language import Hinge, Loss, param, tensor

input1 = tensor("input1")
input2 = tensor("input2")
target = tensor("target", fixed=True)
margin = param("margin", default=0.0)

margin_ranking_loss = Loss(
    Hinge(margin - target * (input1 - input2), tie=1),
    like="torch.nn.functional.margin_ranking_loss",
    module="MarginRankingLoss",
    signature="input1 input2 target margin size_average reduce reduction",
    same_ndim=True,
    notes=("Where the hinge is 0 so are all derivatives, also where an input is infinite; in PyTorch some are NaN.",),
)
