"""Negative log-likelihood of a negative binomial distribution of counts, less terms of the target alone (Hilbe, 2011; statsmodels).

`input` is the logarithm of the mean, and the variance is mean + alpha mean**2. With z = log(alpha mean) it is log(1 + exp(z)) / alpha +
target log(1 + exp(-z)); torch.distributions.NegativeBinomial calls z logits, and 1 / alpha total_count.
"""

from losscomp.language import Loss, exp, log, param, tensor

input = tensor("input")
target = tensor("target", nonnegative=True, fixed=True)
alpha = param("alpha", default=1.0, positive=True)

logits = input + log(alpha)
negative_binomial_nll_loss = Loss(
    log(1 + exp(logits)) / alpha + target * log(1 + exp(-logits)),
    module="NegativeBinomialNLLLoss",
    module_signature="alpha reduction",
    signature="input target alpha reduction",
)
