"""Regression losses as keras.losses has them: the mean over the last axis, targets first (keras/src/losses/losses.py).

    loss = mean over the last axis of the base's loss of (y_pred, y_true), times sample_weight; the mean divides by the number of rows
"""

from losscomp.language import Difference, Loss, Max, Ne, Rational, base, log, param, reused

keras = base("_keras.py")
delta = param("delta", default=1.0, positive=True)
epsilon = param("epsilon", default=1e-7, nonnegative=True)

WEIGHTS = Difference("mean", "the mean divides by the number of rows; PyTorch's by the sum of the weights",
                     Ne(keras.sample_weight, 1), mean=True)
usual = {"input": keras.p, "target": keras.t}
squared = base("regression/mse_loss.py")
absolute = base("regression/l1_loss.py")
huber = base("regression/huber_loss.py")
poisson = base("likelihood/poisson_nll_loss.py")
floor = Rational(1e-7)
log1p = lambda x: log(1 + Max(x, floor, tie=1))


def dialect(base_name, value, plain, name, doc, more="", **fields):
    """The mean over the last axis of a loss of each element."""
    return Loss(keras.mean(value), like=f"keras.losses.{name}", doc=doc, dialect_of=base_name, plain=keras.mean(plain),
                signature=f"y_true y_pred {more} sample_weight reduction", **fields, **keras.COMMON)


mse, mae, hub = (reused(loss, **usual, weight=1) for loss in (squared.mse_loss, absolute.l1_loss, reused(huber.huber_loss, delta=delta)))
rate = reused(poisson.poisson_nll_loss, **usual, log_input=False, full=False, eps=epsilon)

keras_mean_squared_error = dialect("mse_loss", mse, mse, "mean_squared_error", "Squared error as keras.losses has it: its mean over the "
                                   "last axis.", plain_mean_over=keras.sample_weight, differences=(WEIGHTS,))
keras_mean_absolute_error = dialect("l1_loss", mae, mae, "mean_absolute_error", "Absolute error as keras.losses has it: its mean over the "
                                    "last axis.", plain_mean_over=keras.sample_weight, differences=(WEIGHTS,))
keras_huber = dialect("huber_loss", hub, hub, "huber", "Huber loss as keras.losses has it: its mean over the last axis.", "delta")
keras_poisson = dialect("poisson_nll_loss", rate, rate, "poisson", "Poisson loss as keras.losses has it: y_pred - y_true log(y_pred + "
                        "epsilon), its mean over the last axis.", "epsilon")
keras_mean_squared_logarithmic_error = dialect(
    "mse_loss", reused(squared.mse_loss, input=log1p(keras.p), target=log1p(keras.t), weight=1), mse, "mean_squared_logarithmic_error",
    "Squared difference of log(1 + y), y at least 1e-7, as keras.losses has it: its mean over the last axis.",
    differences=(Difference("logarithm", "errors are those of log(1 + max(y, 1e-7))", keras.features.size > 0),))
