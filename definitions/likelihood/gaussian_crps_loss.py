"""Continuous ranked probability score of a Gaussian prediction (Gneiting and Raftery, 2007, equation 21, with the sign of a loss).

std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), where z = (target - input) / std, and Phi and phi are the standard normal distribution
function and density. It has the unit of the target, and is the absolute error where std is small.
"""

from losscomp.language import Loss, erf, exp, pi, sqrt, tensor

input = tensor("input")
target = tensor("target", fixed=True)
std = tensor("std", positive=True, shape="reduced")

error = target - input
z = error / std
density = exp(-(z**2) / 2) / sqrt(2 * pi)
gaussian_crps_loss = Loss(
    error * erf(z / sqrt(2)) + std * (2 * density - 1 / sqrt(pi)),
    module="GaussianCRPSLoss",
    module_signature="reduction",
    signature="input target std reduction",
)
