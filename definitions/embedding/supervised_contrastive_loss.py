"""Supervised contrastive loss: each point should be more similar to those with its label than to the others.

Khosla et al., Supervised Contrastive Learning, 2020, L_out: the mean over the points p with the label of i, without i itself, of
-log(exp(s_ip / t) / sum over a other than i of exp(s_ia / t)); and of that the mean over all points i, as in the authors' code, where
a point whose label no other has counts 0. A sample is a whole matrix of similarities s, with the labels of its rows.
"""

from losscomp.language import Eq, If, LogSumExp, Loss, Max, Ne, Sum, axis, index, oo, param, tensor

points = axis("points")
similarity = tensor("similarity", points, points)
label = index("labels", points, into=None)
temperature = param("temperature", default=0.1, positive=True)

i, j = points.index(), points.index()
same = Eq(label[i], label[j]) & Ne(i, j)
logit = lambda itself: If(Eq(i, j), itself, similarity[i, j] / temperature)
log_p = logit(0) - LogSumExp(logit(-oo), j)

supervised_contrastive_loss = Loss(
    -Sum(Sum(If(same, 1, 0) / Max(Sum(If(same, 1, 0), j), 1, tie=1) * log_p, j), i) / points.size,
    module="SupervisedContrastiveLoss",
    signature="similarity labels temperature reduction",
    notes=("The matrix is square. Dimensions before its two are a batch of matrices, and so is the first of labels.",),
)
