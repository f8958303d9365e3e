"""Distillation loss: how far the softened probabilities of a student are from those of its teacher, both given as logits.

Hinton et al., Distilling the knowledge in a neural network, 2015: temperature**2 times KL(softmax(target / T) || softmax(input / T)), which
is the sum over the classes of p (log p - log q). With the logarithms of softmaxes put in it is what stands below: the difference of two
log-sum-exps less the mean difference of the logits under the teacher. Classes in dimension 1.
"""

from losscomp.language import LogSumExp, Loss, Sum, axis, exp, param, tensor

classes = axis("classes", position=1)
input = tensor("input", classes)
target = tensor("target", classes, fixed=True)
temperature = param("temperature", default=2.0, positive=True)

c = classes.index()
student, teacher = input[c] / temperature, target[c] / temperature
p = exp(teacher - LogSumExp(teacher, c))
apart = (input[c] - target[c]) / temperature

distillation_loss = Loss(
    temperature**2 * (LogSumExp(student, c) - LogSumExp(teacher, c) - Sum(p * apart, c)),
    signature="input target temperature reduction",
)
