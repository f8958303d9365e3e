"""Simple preference optimisation: the chosen answer should be likelier than the rejected one by a margin, with no reference model.

Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024: -log sigmoid(beta (c - r) - gamma), with c and r
the log-probabilities of the two answers, averaged over their tokens. `label_smoothing` is the probability that a preference was noted
the wrong way round, as in TRL.
"""

from losscomp.language import Loss, exp, log, param, tensor

chosen = tensor("policy_chosen_logps")
rejected = tensor("policy_rejected_logps")
beta = param("beta", default=2.0)
gamma = param("gamma", default=0.5)
smoothing = param("label_smoothing", default=0.0, between=(0, 1))

p = 1 / (1 + exp(gamma - beta * (chosen - rejected)))

simpo_loss = Loss(
    -(1 - smoothing) * log(p) - smoothing * log(1 - p),
    module="SimPOLoss",
    signature="policy_chosen_logps policy_rejected_logps beta gamma label_smoothing reduction",
)
