"""Negative log-likelihood of a linear-chain conditional random field (Lafferty, McCallum and Pereira, 2001).

The score of a sequence of tags is the sum of its emissions and transitions; alpha[t, j] is the log-sum-exp of the scores of all
ways to tag the positions up to t that end in the tag j, less the largest such numbers of all earlier positions: so no digits are lost
to what all ways have in common. These largest numbers, top[t], are added again at the end; as constants, since they cancel.
"""

from losscomp.language import Eq, If, LogSumExp, Loss, MaxOver, Sum, axis, index, length, named, state, stop_gradient, tensor

time, tags = axis("time"), axis("tags")
emissions = tensor("emissions", time, tags)
transitions = tensor("transitions", tags, tags, per_sample=False)
lengths = length("lengths", of=time)
tag = index("target", time, into=tags, length=lengths)

t, j, k = axis("positions", extent=lengths).index(), tags.index(), tags.index()

alpha, top = state("alpha", t, j), state("top", t)


def ahead(t, k):
    """How far a number of a position is from the largest there."""
    return named("ahead", alpha[t, k] - stop_gradient(MaxOver(alpha[t, j], j)))


alpha[t, j] = emissions[t, j] + If(Eq(t, 0), 0, LogSumExp(ahead(t - 1, k) + transitions[k, j], k))
top[t] = stop_gradient(MaxOver(alpha[t, j], j))
step = emissions[t, tag[t]] + If(Eq(t, 0), 0, transitions[tag[t - 1], tag[t]])

crf_nll = Loss(
    If(Eq(lengths, 0), 0, LogSumExp(ahead(lengths - 1, j), j) + Sum(stop_gradient(top[t]) - step, t)),
    tables=(alpha, top),
    notes=("transitions[k, j] is the score of tag j after tag k.", "A sequence of length 0 has the loss 0."),
)
