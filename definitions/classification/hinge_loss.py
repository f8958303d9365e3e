"""Hinge losses of a score for a label that is 1 or -1: how far the score falls short of a margin on the label's side.

    hinge_loss: max(0, margin - target * input) (Cortes and Vapnik, 1995), squared_hinge_loss: its square (sklearn.svm.LinearSVC)

At the margin itself the derivative is 0.
"""

from losscomp.language import Hinge, Loss, param, tensor

input = tensor("input")
target = tensor("target", fixed=True)
margin = param("margin", default=1.0)

short = Hinge(margin - target * input, tie=0)

hinge_loss = Loss(
    short,
    signature="input target margin reduction",
    doc="Hinge loss of a score for a label that is 1 or -1: max(0, margin - target * input) (Cortes and Vapnik, 1995).",
)
squared_hinge_loss = Loss(
    short**2,
    signature="input target margin reduction",
    doc="Squared hinge loss of a score for a label that is 1 or -1: max(0, margin - target * input)**2 (sklearn.svm.LinearSVC).",
)
