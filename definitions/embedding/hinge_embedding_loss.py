"""Hinge embedding loss: a distance where the target is 1, its hinge below a margin where the target is -1.

See torch.nn.functional.hinge_embedding_loss. Any other target gives the sum of both.
"""

from losscomp.language import Hinge, If, Loss, Ne, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
margin = param("margin", default=1.0)

hinge_embedding_loss = Loss(
    If(Ne(target, -1), input, 0) + If(Ne(target, 1), Hinge(margin - input, tie=1), 0),
    like="torch.nn.functional.hinge_embedding_loss",
    module="HingeEmbeddingLoss",
    signature="input target margin size_average reduce reduction",
)
