"""CLIP loss: the mean of the cross-entropies of rows and of columns of a matrix of similarities, whose diagonal are the pairs.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021: with s_ij the similarity of image i and text j,
and t the temperature, the mean over all i of (logsumexp over j of s_ij / t + logsumexp over j of s_ji / t) / 2 - s_ii / t. A sample is a
whole matrix: the product of the two sets of vectors is left to the caller's matrix library.
"""

from losscomp.language import LogSumExp, Loss, Sum, axis, named, param, tensor

pairs = axis("pairs")
similarity = tensor("similarity", pairs, pairs)
temperature = param("temperature", default=0.07, positive=True)

i, j = pairs.index(), pairs.index()
row = named("row_loss", LogSumExp(similarity[i, j] / temperature, j) - similarity[i, i] / temperature)
column = named("column_loss", LogSumExp(similarity[j, i] / temperature, j) - similarity[i, i] / temperature)

clip_loss = Loss(
    Sum(row / 2 + column / 2, i) / pairs.size,
    module="CLIPLoss",
    signature="similarity temperature reduction",
    notes=("The matrix is square: row i and column i are a pair. Dimensions before its two are a batch of matrices.",),
)
