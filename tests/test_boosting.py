"""Losses as objectives of XGBoost and LightGBM, beside those that these packages have themselves."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris

from losscomp import catalogue

boosting = pytest.importorskip("losslib.boosting", reason="NOT CHECKED: the library is not built")
xgb = pytest.importorskip("xgboost", reason="NOT CHECKED: boosting, xgboost is not installed")
lgb = pytest.importorskip("lightgbm", reason="NOT CHECKED: boosting, lightgbm is not installed")

on_numpy = importlib.import_module("losslib.numpy")
ONE = {"nthread": 1, "max_depth": 4, "seed": 0}
LIGHT = {"num_threads": 1, "verbose": -1, "seed": 0, "deterministic": True, "boost_from_average": False}
ROUNDS = 10
LOGISTIC, SOFTMAX, POISSON = "binary_cross_entropy_with_logits", "cross_entropy", "poisson_nll_loss"
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


def data(load: Any, weighted: bool) -> tuple[Any, Any, Any]:
    """Samples, labels, and weights or None."""
    x, y = load(return_X_y=True)
    return x, y, np.random.default_rng(0).uniform(0.1, 3, len(y)) if weighted else None


def splits(node: Any) -> Iterator[tuple[Any, Any]]:
    """The feature and the threshold of each split of a tree, from the top."""
    if "split" in node:
        yield node["split"], node["split_condition"]
        for child in node["children"]:
            yield from splits(child)
    elif "split_feature" in node:
        yield node["split_feature"], node["threshold"]
        yield from splits(node["left_child"])
        yield from splits(node["right_child"])


def trees(model: Any) -> list[list[tuple[Any, Any]]]:
    """The splits of each tree of a model of XGBoost or LightGBM."""
    if isinstance(model, lgb.Booster):
        return [list(splits(tree["tree_structure"])) for tree in model.dump_model()["tree_info"]]
    return [list(splits(json.loads(tree))) for tree in model.get_dump(dump_format="json")]


# Beside what the packages have

@WEIGHTED
def test_xgboost_grows_the_trees_of_its_own_logistic_loss(weighted: bool) -> None:
    x, y, weight = data(load_breast_cancer, weighted)
    samples = xgb.DMatrix(x, y, weight=weight)
    theirs = xgb.train({**ONE, "objective": "binary:logistic", "base_score": 0.5}, samples, ROUNDS)
    objective = boosting.xgboost(LOGISTIC, hessian="clamped")
    seen: Any = {}
    ours = xgb.train({**ONE, "base_score": 0.0, "disable_default_eval_metric": 1}, samples, ROUNDS, obj=objective,
                     custom_metric=objective.metric, evals=[(samples, "it")], evals_result=seen, verbose_eval=False)
    assert trees(ours) == trees(theirs) and sum(map(len, trees(ours))) > 60
    np.testing.assert_allclose(objective.inverse_link(ours.predict(samples, output_margin=True)), theirs.predict(samples), rtol=1e-5)
    assert seen["it"][LOGISTIC][-1] == pytest.approx(float(theirs.eval(samples).split(":")[1]), rel=1e-5)
    wrapped = xgb.XGBRegressor(objective=objective, n_estimators=ROUNDS, max_depth=4, n_jobs=1, base_score=0.0,
                               eval_metric=objective.metric)
    wrapped.fit(x, y, sample_weight=weight, eval_set=[(x, y)], sample_weight_eval_set=None if weight is None else [weight], verbose=False)
    np.testing.assert_array_equal(wrapped.predict(x), ours.predict(samples))
    assert wrapped.evals_result()["validation_0"][LOGISTIC] == pytest.approx(seen["it"][LOGISTIC], abs=1e-6)


@WEIGHTED
def test_lightgbm_grows_the_trees_of_its_own_logistic_loss(weighted: bool) -> None:
    x, y, weight = data(load_breast_cancer, weighted)
    samples = lambda: lgb.Dataset(x, y, weight=weight)
    theirs = lgb.train({**LIGHT, "objective": "binary", "metric": "binary_logloss"}, samples(), ROUNDS)
    objective = boosting.lightgbm(LOGISTIC)
    seen: Any = {}
    ours = lgb.train({**LIGHT, "objective": objective, "metric": "none"}, samples(), ROUNDS, feval=objective.metric, valid_sets=[samples()],
                     callbacks=[lgb.record_evaluation(seen)])
    assert trees(ours) == trees(theirs) and sum(map(len, trees(ours))) > 100
    np.testing.assert_allclose(objective.inverse_link(ours.predict(x)), theirs.predict(x), rtol=1e-6)
    p = theirs.predict(x)
    assert seen["valid_0"][LOGISTIC][-1] == pytest.approx(np.average(-np.log(np.where(y, p, 1 - p)), weights=weight), rel=1e-5)
    wrapped = lgb.LGBMRegressor(objective=objective, n_estimators=ROUNDS, n_jobs=1, verbose=-1).fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(wrapped.predict(x), ours.predict(x), rtol=1e-12)


@WEIGHTED
@pytest.mark.parametrize("load", [load_iris, load_digits])
def test_xgboost_grows_the_trees_of_its_own_softmax(load: Any, weighted: bool) -> None:
    """Its second derivatives are 2 p (1 - p): the bound of the Hessian."""
    x, y, weight = data(load, weighted)
    samples, classes = xgb.DMatrix(x, y, weight=weight), {**ONE, "num_class": y.max() + 1, "base_score": 0.0}
    theirs = xgb.train({**classes, "objective": "multi:softprob"}, samples, ROUNDS)
    objective = boosting.xgboost(SOFTMAX, hessian="upper", floor=1e-16)
    ours = xgb.train(classes, samples, ROUNDS, obj=objective)
    assert trees(ours) == trees(theirs) and sum(map(len, trees(ours))) > 100
    shares = objective.inverse_link(ours.predict(samples, output_margin=True))
    np.testing.assert_allclose(shares, theirs.predict(samples), rtol=2e-5, atol=1e-7)
    wrapped = xgb.XGBClassifier(objective=objective, n_estimators=ROUNDS, max_depth=4, n_jobs=1, base_score=0.0)
    wrapped.fit(x, y, sample_weight=weight)
    np.testing.assert_array_equal(wrapped.predict(x, output_margin=True), ours.predict(samples, output_margin=True))


@WEIGHTED
def test_lightgbm_learns_what_it_does_with_its_own_softmax(weighted: bool) -> None:
    """Its second derivatives are K/(K - 1) p (1 - p): exact ones with a learning rate and a least sum of them that are as much smaller."""
    x, y, weight = data(load_iris, weighted)
    theirs = lgb.train({**LIGHT, "objective": "multiclass", "num_class": 3}, lgb.Dataset(x, y, weight=weight), ROUNDS)
    objective = boosting.lightgbm(SOFTMAX)
    settings = {"num_class": 3, "learning_rate": 0.1 / 1.5, "min_sum_hessian_in_leaf": 1e-3 / 1.5}
    ours = lgb.train({**LIGHT, **settings, "objective": objective}, lgb.Dataset(x, y, weight=weight), ROUNDS)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x, raw_score=True), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(objective.inverse_link(ours.predict(x)), theirs.predict(x), rtol=1e-6)
    wrapped = lgb.LGBMClassifier(objective=objective, n_estimators=ROUNDS, n_jobs=1, verbose=-1, learning_rate=0.1 / 1.5,
                                 min_child_weight=1e-3 / 1.5).fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(wrapped.predict(x, raw_score=True), ours.predict(x), rtol=1e-12)


@WEIGHTED
def test_regression_beside_both(weighted: bool) -> None:
    x, y, weight = data(load_diabetes, weighted)
    samples, objective = xgb.DMatrix(x, y, weight=weight), boosting.xgboost("mse_loss")
    start = objective.init_score(y, weight)
    theirs = xgb.train({**ONE, "objective": "reg:squarederror", "base_score": start}, samples, ROUNDS)
    # Theirs is half the square: what is compared with sums of second derivatives is half as large, too.
    ours = xgb.train({**ONE, "base_score": start, "lambda": 2, "min_child_weight": 2}, samples, ROUNDS, obj=objective)
    assert trees(ours) == trees(theirs)
    np.testing.assert_allclose(ours.predict(samples), theirs.predict(samples), rtol=1e-6)
    cases = [("mse_loss", {}, "l2", {}), ("huber_loss", {"delta": 50.0, "hessian": "clamped", "floor": 1.0}, "huber", {"alpha": 50.0}),
             (POISSON, {}, "poisson", {"poisson_max_delta_step": 1e-12})]
    for name, arguments, builtin, settings in cases:
        theirs = lgb.train({**LIGHT, **settings, "objective": builtin}, lgb.Dataset(x, y, weight=weight), ROUNDS)
        ours = lgb.train({**LIGHT, "objective": boosting.lightgbm(name, **arguments)}, lgb.Dataset(x, y, weight=weight), ROUNDS)
        np.testing.assert_allclose(ours.predict(x), theirs.predict(x, raw_score=True), rtol=1e-6, err_msg=name)


def test_init_score_is_where_lightgbm_starts() -> None:
    x, y, weight = data(load_breast_cancer, True)
    own = {"objective": "binary", "num_threads": 1, "verbose": -1}
    theirs = lgb.train({**own, "boost_from_average": True}, lgb.Dataset(x, y, weight=weight), ROUNDS)
    objective = boosting.lightgbm(LOGISTIC)
    start = objective.init_score(y, weight)
    ours = lgb.train({**LIGHT, "objective": objective}, lgb.Dataset(x, y, weight=weight, init_score=np.full(len(y), start)), ROUNDS)
    np.testing.assert_allclose(start + ours.predict(x), theirs.predict(x, raw_score=True), rtol=1e-6, atol=1e-6)


# Scores that begin, and what they mean

def test_the_best_constants() -> None:
    """Means, medians, logarithms of means, log-odds: each known in closed form."""
    rng = np.random.default_rng(1)
    y, weight = rng.normal(100, 3, 1001), rng.uniform(0.1, 3, 1001)
    best = lambda name, *labels, **arguments: boosting.xgboost(name, **arguments).init_score(*labels)
    assert best("mse_loss", y, weight) == pytest.approx(np.average(y, weights=weight), rel=1e-14)
    assert best("l1_loss", y) == pytest.approx(np.median(y), rel=1e-14)
    counts = rng.poisson(4, 500)
    assert best(POISSON, counts) == pytest.approx(np.log(counts.mean()), rel=1e-14)
    clicks = rng.random(1000) < 0.01
    assert best(LOGISTIC, clicks) == pytest.approx(np.log(clicks.mean() / (1 - clicks.mean())), rel=1e-14)
    assert best("binary_cross_entropy", clicks) == pytest.approx(clicks.mean(), rel=1e-12)
    assert best(LOGISTIC, clicks, pos_weight=5.0) == pytest.approx(np.log(5 * clicks.sum() / (~clicks).sum()), rel=1e-14)
    assert best("soft_margin_loss", clicks, classes=(-1, 1)) == pytest.approx(best(LOGISTIC, clicks), rel=1e-14)
    labels, weight = np.repeat([0, 1, 2], [5, 3, 2]), np.arange(1, 11)
    shares = np.bincount(labels, weight) / weight.sum()
    np.testing.assert_allclose(softmax(best(SOFTMAX, labels, weight)), shares, rtol=1e-12)
    np.testing.assert_allclose(boosting.xgboost("focal_loss").inverse_link(best("focal_loss", labels, weight)[None])[0], shares, rtol=1e-6)
    none = boosting.xgboost(SOFTMAX).init_score(labels, num_class=4)                      # a class without samples
    np.testing.assert_allclose(softmax(none), [0.5, 0.3, 0.2, 0], atol=1e-12)
    assert np.isfinite(none).all() and 30 < best(LOGISTIC, np.ones(5)) < 100
    tags = np.array([[0, 1], [1, 1], [0, 0]])
    np.testing.assert_allclose(best("multilabel_soft_margin_loss", tags), np.log([0.5, 2]), rtol=1e-12)
    np.testing.assert_allclose(best("mse_loss", tags), tags.mean(0), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_links(dtype: Any) -> None:
    """Sigmoid, softmax, exp and nothing, to the last digits, also where a share is tiny; weights of classes are undone."""
    rtol = 40 * np.finfo(dtype).eps
    f = np.array([-40, -3, -0.5, 0, 0.2, 5, 40], dtype)
    rows = np.random.default_rng(0).normal(0, 9, (200, 10)).astype(dtype)
    exactly = rows.astype(np.float64)
    link = lambda name, scores, **arguments: boosting.xgboost(name, **arguments).inverse_link(scores)
    weight = np.arange(1.0, 11.0)
    undone = softmax(exactly, 1) / weight
    for found, expected in [
        (link(LOGISTIC, f), expit(f.astype(np.float64))), (link("soft_margin_loss", f, classes=(-1, 1)), expit(f.astype(np.float64))),
        (link(POISSON, f), np.exp(f.astype(np.float64))), (link(POISSON, np.abs(f) + 1, log_input=False, eps=0.0), np.abs(f) + 1),
        (link("mse_loss", f), f), (link("huber_loss", f), f), (link("l1_loss", f), f),
        (link(SOFTMAX, rows), softmax(exactly, 1)), (link(SOFTMAX, rows, weight=weight), undone / undone.sum(1, keepdims=True)),
        (link("keras_categorical_crossentropy", rows, from_logits=True), softmax(exactly, 1)),
        (link("keras_binary_crossentropy", rows, from_logits=True), expit(exactly)),
        (link("multilabel_soft_margin_loss", rows), expit(exactly)),
    ]:
        np.testing.assert_allclose(found, expected, rtol=10 * rtol)


def test_the_link_of_focal_loss_is_that_of_the_paper() -> None:
    """Charoenphakdee et al., On focal loss for class-posterior probability estimation, 2021, theorem 11: p is h(v) / sum of h(v), where
    v is the softmax of the scores and h(v) = v / ((1 - v)^gamma - gamma (1 - v)^(gamma - 1) v log v)."""
    rows, gamma = np.random.default_rng(0).normal(0, 2, (50, 4)), 3.0
    v = softmax(rows, 1)
    h = v / ((1 - v) ** gamma - gamma * (1 - v) ** (gamma - 1) * v * np.log(v))
    np.testing.assert_allclose(boosting.lightgbm("focal_loss", gamma=gamma).inverse_link(rows), h / h.sum(1, keepdims=True), rtol=1e-9)


def test_shares_balance_the_gradients_of_any_loss_of_rows() -> None:
    """Squared margins: each class has a gradient of its own shape, unlike softmax, where those of all classes are alike."""
    rows = np.random.default_rng(0).normal(0, 0.2, (20, 5))
    objective = boosting.xgboost("multi_margin_loss", p=2)
    shares = objective.inverse_link(rows)
    each = np.stack([objective(np.full(20, k), rows)[0] for k in range(5)], 1)
    null = np.stack([np.linalg.svd(g.T)[2][-1] for g in each])
    np.testing.assert_allclose(shares, null / null.sum(1, keepdims=True), rtol=1e-10)


# Objectives

def numeric(objective: Any, labels: Any, scores: Any, weight: Any, step: float = 1e-4) -> tuple[Any, Any]:
    """Gradient and diagonal of the Hessian of the weighted losses, by differences."""
    grad, diagonal = np.empty(scores.shape), np.empty(scores.shape)
    total = lambda move: objective.scores.values(labels, scores + move) * weight
    for k in np.ndindex(scores.shape[1:]):
        move = np.zeros(scores.shape)
        move[(slice(None), *k)] = step
        up, here, down = total(move), total(0), total(-move)
        grad[(slice(None), *k)], diagonal[(slice(None), *k)] = (up - down) / (2 * step), (up - 2 * here + down) / step**2
    return grad, diagonal


BELOW_0 = {"jensen_shannon"}                                     # logarithms of probabilities
# Parameters with which a loss bends no more than differences can follow.
SMOOTH: dict[str, dict[str, float]] = {"charbonnier_loss": {"eps": 0.5}}


@pytest.mark.filterwarnings("ignore:.*second derivatives of all samples are 0")
def test_every_loss_of_scores_has_its_derivatives_and_the_others_say_why_not() -> None:
    rng = np.random.default_rng(0)
    worked, refused = set(), set()
    for name in catalogue.load(catalogue.builtin_definitions()):
        try:
            objective = boosting.xgboost(name, **SMOOTH.get(name, {}))
        except boosting.ArgumentError as error:
            assert name in str(error) and ("may be any of" in str(error) or "no function of one score" in str(error))
            refused.add(name)
            continue
        rows, indexed = objective.scores.rows, objective.scores.indexed
        scores = rng.uniform(0.2, 0.8, (20, 3) if rows else 20)
        labels = rng.integers(0, 3, 20).astype(np.float32) if indexed else rng.uniform(0.1, 0.9, scores.shape)
        if name == "multilabel_margin_loss":
            labels = np.tile([1, -1, -1], (20, 1))
        if "softmax" in name and not indexed:
            labels /= labels.sum(1, keepdims=True)               # its gradient is stated for these
        if name in BELOW_0:
            scores, labels = -scores, -labels
        weight = rng.uniform(0.5, 2, 20)
        grad, diagonal = objective(labels, scores, weight)
        again = boosting.xgboost(getattr(on_numpy, name), **SMOOTH.get(name, {}))
        for found, expected in zip(again(labels, scores, weight), (grad, diagonal), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=name)
        if "margin" in name or "hinge" in name or name == "l1_loss" or "absolute" in name:
            assert np.isfinite(grad).all()                        # kinks: no differences across them
        else:
            by_steps = numeric(objective, labels, scores, weight)
            np.testing.assert_allclose(grad, by_steps[0], rtol=2e-6, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(diagonal, by_steps[1], rtol=1e-5, atol=1e-6, err_msg=name)
        worked.add(name)
    assert len(worked) >= 30 and {"soft_dtw", "ctc_loss", "triplet_margin_loss"} <= refused


def test_policies() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(0, 2, (30, 5)), rng.integers(0, 5, 30)
    p = softmax(rows, 1)
    made = {policy: boosting.xgboost(SOFTMAX, hessian=policy)(labels, rows)[1] for policy in ("exact", "upper")}
    np.testing.assert_allclose(made["exact"], p * (1 - p), rtol=1e-9)
    np.testing.assert_allclose(made["upper"], 2 * p * (1 - p), rtol=1e-9)
    focal = boosting.xgboost("focal_loss", hessian="upper")(labels, rows)[1]
    assert (focal >= boosting.xgboost("focal_loss")(labels, rows)[1] - 1e-12).all() and (focal >= 0).all()
    weight = rng.uniform(1, 2, 30)
    _, floored = boosting.xgboost("l1_loss", hessian="clamped", floor=2.0)(rows[:, 0], rows[:, 1], weight)
    np.testing.assert_allclose(floored, 2 * weight)
    with pytest.warns(UserWarning, match="second derivatives of all samples are 0.*hessian='clamped'"):
        boosting.xgboost("l1_loss")(rows[:, 0], rows[:, 1])


def test_objectives_are_copied_and_sent() -> None:
    from sklearn.base import clone

    objective = boosting.xgboost("huber_loss", delta=2.0, hessian="clamped")
    y, f = np.array([1.0, 5.0]), np.zeros(2)
    for made in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective)),
                 clone(xgb.XGBRegressor(objective=objective)).get_params()["objective"]):
        np.testing.assert_array_equal(made(y, f)[0], [-1.0, -2.0])
    assert pickle.loads(pickle.dumps(objective.metric))(y, f) == objective.metric(y, f) == pytest.approx((0.5 + 8) / 2)


@pytest.mark.parametrize(("call", "words"), [
    (lambda b: b.xgboost("huber"), "there is no loss 'huber'. Did you mean huber_loss"),
    (lambda b: b.xgboost("gaussian_nll_loss"), "may be any of input, var"),
    (lambda b: b.xgboost("soft_dtw"), "no function of one score"),
    (lambda b: b.xgboost("huber_loss", sigma=2), "there is no argument 'sigma'. It has input, target, weight, delta"),
    (lambda b: b.xgboost("huber_loss", reduction="sum"), "taken sample by sample"),
    (lambda b: b.xgboost("huber_loss", scores="delta"), "names no tensor that can be its scores"),
    (lambda b: b.xgboost("huber_loss", hessian="fisher"), "no policy. Choose from exact, clamped, upper"),
    (lambda b: b.xgboost("huber_loss", floor=1.0), "does not go with hessian='exact'"),
    (lambda b: b.xgboost("cross_entropy", classes=(-1, 1)), "one score a sample"),
    (lambda b: b.xgboost("huber_loss", weight=np.ones(3))(np.ones(3), np.ones(3)), "weights of samples go with the data"),
    (lambda b: b.xgboost("huber_loss")(np.ones(3), np.ones(4)), r"not as many labels as scores: target \(3,\), input \(4,\)"),
    (lambda b: b.xgboost("huber_loss")(np.ones(3), np.ones(3), np.ones(2)), r"weights have the shape \(2,\), and there are 3 samples"),
    (lambda b: b.xgboost("huber_loss")(np.array(["a"]), np.ones(1)), "Give numbers"),
    (lambda b: b.xgboost("cross_entropy")(np.zeros(3), np.zeros(3)), r"takes a row of scores for each sample.*num_class"),
    (lambda b: b.xgboost("cross_entropy")(np.array([0, 1, 3.0]), np.zeros((3, 3))), r"target\[2\] is 3.*classes 0 to 2.*num_class"),
    (lambda b: b.xgboost("cross_entropy")(np.array([0, 1.5]), np.zeros((2, 3))), r"target\[1\] is 1.5, and labels .* are classes"),
    (lambda b: b.xgboost("soft_margin_loss", classes=(-1, 1))(np.array([0, 2]), np.zeros(2)), "labels are 0 and 1, and there is 2"),
    (lambda b: b.xgboost("soft_margin_loss").inverse_link(np.zeros(2)), r"Name the two: classes=\(0, 1\)"),
    (lambda b: b.xgboost("nll_loss").inverse_link(np.zeros((2, 3))), "they predict no shares"),
    (lambda b: b.xgboost("mse_loss").init_score([]), "have no best score"),
    (lambda b: b.xgboost("mse_loss").init_score([1.0, np.nan]), "is NaN, so there is no best score"),
])
def test_what_is_wrong_is_said(call: Any, words: str) -> None:
    with pytest.raises(boosting.ArgumentError.__mro__[1], match=words):
        call(boosting)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightgbm is not installed.*pip install lightgbm"):
        boosting.lightgbm("huber_loss")
