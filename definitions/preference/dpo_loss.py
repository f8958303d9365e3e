"""Direct preference optimisation: the chosen answer should gain more log-probability over a reference model than the rejected one.

Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model, 2023: -log sigmoid(beta h), with
h = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps), each the log-probability of
a whole answer. `label_smoothing` is the probability that a preference was noted the wrong way round (Mitchell, 2023), as TRL has it.
"""

from losscomp.language import Loss, exp, log, param, tensor

policy_chosen = tensor("policy_chosen_logps")
policy_rejected = tensor("policy_rejected_logps")
reference_chosen = tensor("reference_chosen_logps", fixed=True)
reference_rejected = tensor("reference_rejected_logps", fixed=True)
beta = param("beta", default=0.1)
smoothing = param("label_smoothing", default=0.0, between=(0, 1))

logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
p = 1 / (1 + exp(-beta * logits))

dpo_loss = Loss(
    -(1 - smoothing) * log(p) - smoothing * log(1 - p),
    module="DPOLoss",
    signature="policy_chosen_logps policy_rejected_logps reference_chosen_logps reference_rejected_logps beta label_smoothing reduction",
)
