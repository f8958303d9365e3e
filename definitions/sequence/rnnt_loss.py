"""RNN transducer loss (Graves, 2012), with the softmax over classes included, as torchaudio.functional.rnnt_loss has it.

alpha[t, u] is the logarithm of the probability of having emitted the first u labels within the first t + 1 frames: each step
either stays (emits a blank and goes to the next frame) or emits the next label.
"""

from losscomp.language import LogAddExp, LogSumExp, Loss, Where, axis, index, length, oo, param, state, tensor

time, classes, labels = axis("time"), axis("classes"), axis("labels")
steps = axis("steps", size=labels + 1)
logits = tensor("logits", time, steps, classes)
logit_length, target_length = length("logit_lengths", of=time), length("target_lengths", of=labels)
target = index("targets", labels, into=classes, length=target_length)
blank = param("blank", default=0, into=classes)

t = axis("frames", extent=logit_length).index()
u = axis("emitted", extent=target_length + 1).index()
c = classes.index()

norm = state("norm", t, u)
norm[t, u] = LogSumExp(logits[t, u, c], c)
stay = state("stay", t, u, outside=-oo, start={(-1, 0): 0})
stay[t, u] = logits[t, u, blank] - norm[t, u]
emit = state("emit", t, u, outside=-oo)
emit[t, u] = Where(u < target_length, logits[t, u, target[u]] - norm[t, u], -oo)
alpha = state("alpha", t, u, outside=-oo, start={(-1, 0): 0})
alpha[t, u] = LogAddExp(alpha[t - 1, u] + stay[t - 1, u], alpha[t, u - 1] + emit[t, u - 1])

rnnt_loss = Loss(
    -alpha[logit_length - 1, target_length] - stay[logit_length - 1, target_length],
    tables=(norm, stay, emit, alpha),
    signature="logits targets logit_lengths target_lengths blank reduction",
)
