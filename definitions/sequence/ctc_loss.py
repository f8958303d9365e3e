"""Connectionist temporal classification of sequences (Graves et al., 2006; torch.nn.functional.ctc_loss).

The probability of a target is that of all its alignments: each label in order, repeated, with blanks between. alpha[t, s] is
the logarithm of the probability of all ways to be in state s after frame t; state 2 k + 1 is label k, even states are blanks.
"""

from losscomp.language import (
    Eq,
    If,
    LogAddExp,
    Loss,
    Max,
    Sum,
    Where,
    axis,
    exp,
    index,
    length,
    oo,
    param,
    reduction_is,
    state,
    straight_through,
    tensor,
)

time, classes, labels = axis("time", position=0), axis("classes"), axis("labels")
log_probs = tensor("log_probs", time, classes)
input_length, target_length = length("input_lengths", of=time), length("target_lengths", of=labels)
target = index("targets", labels, into=classes, length=target_length, packed=True)
blank = param("blank", default=0, into=classes)
zero_infinity = param("zero_infinity", default=False, integer=True, between=(0, 1))
normalized = param("normalized", default=True, integer=True, between=(0, 1))
t, c = axis("frames", extent=input_length).index(), classes.index()
s = axis("states", extent=2 * target_length + 1).index()

label, alpha = state("label", s, into=classes, outside=-1), state("alpha", t, s, outside=-oo, start={(-1, 0): 0})
label[s] = If(Eq(s % 2, 0), blank, target[s // 2])
no_skip = Eq(s % 2, 0) | Eq(label[s], label[s - 2])
alpha[t, s] = LogAddExp(alpha[t - 1, s], alpha[t - 1, s - 1], If(no_skip, -oo, alpha[t - 1, s - 2])) + log_probs[t, label[s]]

nll = -LogAddExp(alpha[input_length - 1, 2 * target_length], alpha[input_length - 1, 2 * target_length - 1])
as_normalized = straight_through(nll, nll + Sum(Sum(exp(log_probs[t, c]), c), t))
counted = If(Eq(normalized, 1), as_normalized, nll) / If(reduction_is("mean"), Max(target_length, 1, tie=1), 1)

ctc_loss = Loss(
    Where(Eq(nll, oo), If(Eq(zero_infinity, 1), 0, nll), counted),
    tables=(label, alpha),
    like="torch.nn.functional.ctc_loss",
    module="CTCLoss",
    signature="log_probs targets input_lengths target_lengths blank reduction zero_infinity normalized",
    notes=(
        "The mean divides each loss by the length of its target first, as PyTorch's does.",
        "With normalized=True the gradient has the term exp(log_probs), as PyTorch's has: right for log_probs that are kept normalised.",
        "With normalized=False the gradient is the derivative of the value.",
        "A target that has no alignment has the loss inf and the gradient 0; PyTorch's gradient is NaN.",
        "Arithmetic is in double precision: in float32 gradients are nearer to the truth than PyTorch's.",
        "Labels out of range are errors; PyTorch reads outside the array.",
    ),
)
