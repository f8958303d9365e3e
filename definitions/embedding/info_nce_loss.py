"""InfoNCE: of each row of a matrix of similarities, the softmax cross-entropy with the column of the same number as the label.

van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018: -log(exp(s_ii / t) / sum over j of exp(s_ij / t)),
the mean over all i, with s_ij the similarity of query i and key j, and t the temperature. A sample is a whole matrix: the product of the
two sets of vectors is left to the caller's matrix library. The symmetric loss of CLIP (Radford et al., 2021) is the mean of this loss of
the matrix and of its transpose.
"""

from losscomp.language import LogSumExp, Loss, Sum, axis, param, tensor

pairs = axis("pairs")
similarity = tensor("similarity", pairs, pairs)
temperature = param("temperature", default=0.1, positive=True)

i, j = pairs.index(), pairs.index()

info_nce_loss = Loss(
    Sum(LogSumExp(similarity[i, j] / temperature, j) - similarity[i, i] / temperature, i) / pairs.size,
    module="InfoNCELoss",
    signature="similarity temperature reduction",
    notes=("The matrix is square: row i and column i are a pair. Dimensions before its two are a batch of matrices.",),
)
