"""Hinges and divergences as keras.losses has them: targets first, the mean or the sum over the last axis (keras/src/losses/losses.py).

    hinge: the mean over the last axis of max(1 - s y_pred, 0), s = y_true, and -1 where y_true is 0
    kl_divergence: the sum over the last axis of t log(t / p), both moved into [epsilon, 1]
"""

from losscomp.language import Difference, Eq, If, Loss, base, clip, log, param, reused

keras = base("_keras.py")
ranking = base("embedding/margin_ranking_loss.py")
divergence = base("classification/kl_div.py")
epsilon = param("epsilon", default=1e-7, between=(0, 1))

sign = If(Eq(keras.t, 0), -1, keras.t)
hinge = reused(ranking.margin_ranking_loss, input1=keras.p, input2=0, target=sign, margin=1)
plain_hinge = reused(ranking.margin_ranking_loss, input1=keras.p, input2=0, target=keras.t, margin=1)
LABELS = Difference("labels", "labels that are 0 count as -1: Keras takes 0 and 1 as well as -1 and 1", (Eq(keras.t, 0), keras.c))
SQUARE = Difference("square", "the hinge is squared", (hinge > 0, keras.c))
t, p = clip(keras.t, epsilon, 1), clip(keras.p, epsilon, 1)

keras_hinge = Loss(
    keras.mean(hinge), doc="Hinge loss as keras.losses has it: its mean over the last axis; labels are 0 and 1, or -1 and 1.",
    like="keras.losses.hinge", signature="y_true y_pred sample_weight reduction", dialect_of="margin_ranking_loss",
    plain=keras.mean(plain_hinge), differences=(LABELS,),
    notes=("Keras looks at all labels, and takes 0 as -1 only if each is 0 or 1; the two agree but for labels of 0 among those of -1.",),
    **keras.COMMON)
keras_squared_hinge = Loss(
    keras.mean(hinge**2), doc="Squared hinge loss as keras.losses has it: its mean over the last axis; labels as for keras_hinge.",
    like="keras.losses.squared_hinge", signature="y_true y_pred sample_weight reduction", dialect_of="margin_ranking_loss",
    plain=keras.mean(plain_hinge), differences=(LABELS, SQUARE), **keras.COMMON)
keras_kl_divergence = Loss(
    keras.total(reused(divergence.kl_div, input=log(p), target=t, log_target=False)), like="keras.losses.kl_divergence",
    doc="Kullback-Leibler divergence as keras.losses has it: of probabilities, moved into [epsilon, 1], summed over the last axis.",
    signature="y_true y_pred sample_weight reduction epsilon", dialect_of="kl_div",
    plain=keras.total(reused(divergence.kl_div, input=log(keras.p), target=keras.t, log_target=False)),
    differences=(Difference("clip", "probabilities outside of [epsilon, 1] count as its ends, without a gradient",
                            ((keras.p < epsilon) | (keras.p > 1) | (keras.t < epsilon) | (keras.t > 1), keras.c)),),
    **keras.COMMON)
