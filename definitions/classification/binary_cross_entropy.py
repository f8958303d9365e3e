"""Binary cross-entropy of a probability (torch.nn.functional.binary_cross_entropy).

The logarithms are clamped to at least -100. The derivatives by `input` are not those of the clamped value but, as PyTorch
documents them, those of the formula without clamps, with a floor of 1e-12 (in single precision) under their denominators.
"""

from losscomp.language import Loss, Max, Rational, log, stated, tensor

input = tensor("input", between=(0, 1))
target = tensor("target", between=(0, 1), fixed=True, shape="same")
weight = tensor("weight", optional=True, shape="expand")

log_p = Max(log(input), -100, tie=1)
log_q = Max(log(1 - input), -100, tie=1)
spread = Max(input * (1 - input), Rational(9.999999960041972e-13), tie=1)
curvature = ((1 - target) * input**2 + target * (1 - input) ** 2) / spread**2
slope = stated((input - target) / spread, {input: curvature})
log_odds = stated(log_q - log_p, {input: -1 / spread})  # the same mixed derivative as that of the slope

binary_cross_entropy = Loss(
    weight * stated(-(target * log_p + (1 - target) * log_q), {input: slope, target: log_odds}),
    like="torch.nn.functional.binary_cross_entropy",
    module="BCELoss",
    signature="input target weight size_average reduce reduction",
    notes=(
        "The derivative by input is the stated one, not that of the value, where a logarithm is clamped; so it is in PyTorch.",
        "The derivative by target is that of the clamped value, at most 100 in size; PyTorch's is infinite at 0 and 1.",
        "weight has a derivative; in PyTorch it has none.",
    ),
)
