"""RankNet: the difference of two scores is the log-odds that the first ranks higher.

Burges et al., Learning to Rank using Gradient Descent, 2005: -P d + log(1 + exp(d)), with d = input1 - input2 and P, the target, the
probability that the first ranks higher: 1 where it does, 0 where the second does, 1/2 for a tie. With target 1 it is softplus(-d).
"""

from losscomp.language import Loss, exp, log, tensor

input1 = tensor("input1")
input2 = tensor("input2")
target = tensor("target", between=(0, 1), fixed=True)
weight = tensor("weight", optional=True, shape="expand")

logit = input1 - input2

ranknet_loss = Loss(
    weight * (log(1 + exp(logit)) - target * logit),
    module="RankNetLoss",
    signature="input1 input2 target weight reduction",
    rewrites=("sigmoids at even odds",),
)
