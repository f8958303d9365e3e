"""Multi-class N-pair loss: the similarity of each pair should exceed those of its first half with all other second halves.

Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016: log(1 + sum over j other than i of exp(s_ij - s_ii)), the
mean over all i, which is logsumexp over j of s_ij, less s_ii. A sample is a whole matrix of similarities s_ij of anchor i and positive
j; their product, and a regularisation of their lengths, are left to the caller.
"""

from losscomp.language import LogSumExp, Loss, Sum, axis, tensor

pairs = axis("pairs")
similarity = tensor("similarity", pairs, pairs)

i, j = pairs.index(), pairs.index()

n_pairs_loss = Loss(
    Sum(LogSumExp(similarity[i, j], j) - similarity[i, i], i) / pairs.size,
    module="NPairsLoss",
    signature="similarity reduction",
    notes=("The matrix is square: row i and column i are a pair. Dimensions before its two are a batch of matrices.",),
)
