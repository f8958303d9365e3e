"""Identity preference optimisation: the margin of the chosen answer over the rejected one should be 1 / (2 beta), not as large as possible.

Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023: (h - 1 / (2 beta))^2, with
h = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps). TRL takes log-probabilities
that are averaged over the tokens of an answer, the paper takes their sum.
"""

from losscomp.language import Loss, param, tensor

policy_chosen = tensor("policy_chosen_logps")
policy_rejected = tensor("policy_rejected_logps")
reference_chosen = tensor("reference_chosen_logps", fixed=True)
reference_rejected = tensor("reference_rejected_logps", fixed=True)
beta = param("beta", default=0.1, positive=True)

logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)

ipo_loss = Loss(
    (logits - 1 / (2 * beta)) ** 2,
    module="IPOLoss",
    signature="policy_chosen_logps policy_rejected_logps reference_chosen_logps reference_rejected_logps beta reduction",
)
