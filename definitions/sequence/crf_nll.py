"""Negative log-likelihood of a linear-chain conditional random field (Lafferty, McCallum and Pereira, 2001).

The score of a sequence of tags is the sum of its emissions and transitions; alpha[t, j] is the log-sum-exp of the scores of all
ways to tag the positions up to t that end in the tag j.
"""

from losscomp.language import Eq, If, LogSumExp, Loss, Sum, axis, index, length, state, tensor

time, tags = axis("time"), axis("tags")
emissions = tensor("emissions", time, tags)
transitions = tensor("transitions", tags, tags, per_sample=False)
lengths = length("lengths", of=time)
tag = index("target", time, into=tags, length=lengths)

t, j, k = axis("positions", extent=lengths).index(), tags.index(), tags.index()

alpha = state("alpha", t, j)
alpha[t, j] = emissions[t, j] + If(Eq(t, 0), 0, LogSumExp(alpha[t - 1, k] + transitions[k, j], k))
step = emissions[t, tag[t]] + If(Eq(t, 0), 0, transitions[tag[t - 1], tag[t]])

crf_nll = Loss(
    If(Eq(lengths, 0), 0, LogSumExp(alpha[lengths - 1, j], j) - Sum(step, t)),
    tables=(alpha,),
    notes=("transitions[k, j] is the score of tag j after tag k.", "A sequence of length 0 has the loss 0."),
)
