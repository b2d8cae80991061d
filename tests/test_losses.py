"""Losses: the formulas of their papers, their limits, weights from counts, half precision, bad use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxr_records.errors import UsageError
from cxr_records.sampling import class_weights
from cxr_records.trainers.losses import LOSSES, make_loss
from cxr_records.trainers.weighting import shift_of_loss

RECORDS = 1000
COUNTS = {"binary": np.array([120]), "multiclass": np.array([600, 300, 90, 10]), "multilabel": np.array([
    500, 120, 30, 1,
])}  # fmt: skip
ALL = [(kind, name) for kind, names in LOSSES.items() for name in names]


def loss_of(name: str, kind: str, **options: float) -> keras.losses.Loss:
    return make_loss(name, kind, COUNTS[kind], RECORDS, **options)


def labels_for(kind: str, rows: int) -> np.ndarray:
    """Labels of every class, int32, shaped as the reader gives them."""
    if kind == "multiclass":
        return np.arange(rows, dtype=np.int32) % 4
    if kind == "binary":
        return np.arange(rows, dtype=np.int32) % 2
    return np.arange(rows * 4, dtype=np.int32).reshape(rows, 4) % 3 % 2


def value(loss: keras.losses.Loss, labels, logits, weights=None) -> float:
    return float(loss(labels, logits, weights))


def gradients(loss: keras.losses.Loss, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """d loss / d logits, by way of a layer, so on any backend."""
    tf = pytest.importorskip("tensorflow")
    watched = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        result = loss(labels, watched)
    return tape.gradient(result, watched).numpy()


# Formulas in float64, written plainly


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_bce(y, x, positive=1.0, negative=1.0):
    return np.mean(-positive * y * np.log(sigmoid(x)) - negative * (1 - y) * np.log(sigmoid(-x)))


def plain_focal(y, x, gamma, alpha=None):
    p = np.where(y == 1, sigmoid(x), sigmoid(-x))
    share = 1.0 if alpha is None else np.where(y == 1, alpha, 1 - alpha)
    return np.mean(-share * (1 - p) ** gamma * np.log(p))


def plain_asymmetric(y, x, gamma_neg, gamma_pos, clip):
    p = sigmoid(x)
    shifted = np.maximum(p - clip, 0)
    positive = -((1 - p) ** gamma_pos) * np.log(p)
    negative = -(shifted**gamma_neg) * np.log(1 - shifted)
    return np.mean(y * positive + (1 - y) * negative)


def plain_ce(y, x, weights=None, adjustment=0.0):
    x = x + adjustment
    logs = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    losses = -logs[np.arange(len(y)), y]
    return np.mean(losses if weights is None else losses * weights[y])


batches_of_rows = st.integers(1, 5).flatmap(
    lambda rows: st.tuples(
        arrays.arrays(np.int32, (rows, 4), elements=st.integers(0, 1)),
        arrays.arrays(np.float32, (rows, 4), elements=st.floats(-12, 12, width=32)),
    )
)
batches_of_classes = st.integers(1, 5).flatmap(
    lambda rows: st.tuples(
        arrays.arrays(np.int32, rows, elements=st.integers(0, 3)),
        arrays.arrays(np.float32, (rows, 4), elements=st.floats(-12, 12, width=32)),
    )
)
few = settings(max_examples=25)


@few
@given(batches_of_rows)
def test_bce_is_the_mean_over_images_and_findings(batch):
    y, x = batch
    assert value(loss_of("bce", "multilabel"), y, x) == pytest.approx(plain_bce(y, x.astype(float)), rel=1e-5)


@few
@given(batches_of_rows)
def test_weighted_bce_weights_each_finding_by_its_counts_over_the_training_records(batch):
    y, x = batch
    counts = COUNTS["multilabel"]
    expected = plain_bce(y, x.astype(float), RECORDS / (2 * counts), RECORDS / (2 * (RECORDS - counts)))
    assert value(loss_of("weighted_bce", "multilabel"), y, x) == pytest.approx(expected, rel=1e-5)


@few
@given(batches_of_rows, st.floats(0, 5), st.one_of(st.none(), st.floats(0.01, 0.99)))
def test_focal_loss_is_equation_5_of_its_paper(batch, gamma, alpha):
    y, x = batch
    loss = loss_of("focal", "multilabel", gamma=gamma, **({} if alpha is None else {"alpha": alpha}))
    assert value(loss, y, x) == pytest.approx(plain_focal(y, x.astype(float), gamma, alpha), rel=1e-4)


@few
@given(batches_of_rows, st.floats(0, 5), st.floats(0, 3), st.floats(0, 0.5))
def test_asymmetric_loss_is_that_of_its_paper(batch, gamma_neg, gamma_pos, clip):
    y, x = batch
    loss = loss_of("asymmetric", "multilabel", gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    expected = plain_asymmetric(y, x.astype(float), gamma_neg, gamma_pos, clip)
    assert value(loss, y, x) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@few
@given(batches_of_classes, st.floats(0, 2))
def test_logit_adjustment_adds_tau_times_the_log_of_each_share(batch, tau):
    y, x = batch
    expected = plain_ce(y, x.astype(float), adjustment=tau * np.log(COUNTS["multiclass"] / RECORDS))
    loss = loss_of("logit_adjusted", "multiclass", tau=tau)
    assert value(loss, y, x) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@few
@given(batches_of_classes)
def test_weighted_ce_weights_by_inverse_frequency(batch):
    y, x = batch
    weights = np.array(class_weights(COUNTS["multiclass"].tolist(), RECORDS))
    expected = plain_ce(y, x.astype(float), weights)
    assert value(loss_of("weighted_ce", "multiclass"), y, x) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@few
@given(batch=batches_of_classes)
def test_focal_loss_of_classes_weighs_each_cross_entropy_by_what_is_wrong(batch, gamma):
    y, x = batch
    x = x.astype(float)
    p = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True))[np.arange(len(y)), y]
    expected = np.mean(-((1 - p) ** gamma) * np.log(p))
    assert value(loss_of("focal", "multiclass", gamma=gamma), *batch) == pytest.approx(
        expected, rel=1e-3, abs=1e-6
    )


def plain_ldam(y, x, counts, margin, scale, beta=None):
    """As in the code of Cao et al., from cosines; weights of the effective number, of mean 1 over records."""
    margins = 1 / np.sqrt(np.sqrt(counts))
    margins = margins * margin / margins.max()
    x = x / scale - margins * np.eye(len(counts))[y]
    if beta is None:
        return plain_ce(y, scale * x)
    weights = (1 - beta) / (1 - beta ** counts.astype(float))
    return plain_ce(y, scale * x, weights * counts.sum() / (weights * counts).sum())


@few
@given(batches_of_classes)
def test_ldam_takes_the_margins_of_its_paper_off_the_true_class_and_weighs_when_it_is_told(batch):
    y, x = batch
    loss, counts = loss_of("ldam", "multiclass", margin=0.4, scale=20.0, beta=0.99), COUNTS["multiclass"]
    near = {"rel": 1e-4, "abs": 1e-5}
    assert value(loss, y, x) == pytest.approx(plain_ldam(y, x.astype(float), counts, 0.4, 20), **near)

    loss.reweighted = True

    assert value(loss, y, x) == pytest.approx(plain_ldam(y, x.astype(float), counts, 0.4, 20, 0.99), **near)


@pytest.mark.parametrize(
    ("defer", "epochs", "expected"), [(0.8, 200, 160), (0.8, 5, 4), (0, 9, 0), (1, 9, 9)]
)
def test_the_weights_of_ldam_begin_after_a_share_of_the_epochs(defer, epochs, expected):
    assert loss_of("ldam", "multiclass", defer=defer).reweights_from(epochs) == expected


def test_what_is_drawn_as_often_is_weighted_the_same():
    """The counts of class-balanced sampling: nothing is corrected twice."""
    y, x = labels_for("multiclass", 8), np.random.default_rng(3).normal(0, 2, (8, 4)).astype(np.float32)
    even = np.full(4, 250.0)
    plain = value(make_loss("ce", "multiclass", even, RECORDS), y, x)

    for name in ("weighted_ce", "logit_adjusted"):
        assert value(make_loss(name, "multiclass", even, RECORDS), y, x) == pytest.approx(plain, rel=1e-5)
    ldam = make_loss("ldam", "multiclass", even, RECORDS)
    before = value(ldam, y, x)
    ldam.reweighted = True
    assert value(ldam, y, x) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("multilabel", "focal", {"gamma": 2.0}),
        ("multiclass", "focal", {"gamma": 2.0}),
        ("multiclass", "ldam", {"margin": 0.5, "scale": 30.0}),
        ("multilabel", "asymmetric", {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}),
        ("multiclass", "logit_adjusted", {"tau": 1.0}),
    ],
)
def test_options_left_out_have_the_values_of_the_papers(kind, name, options):
    y = labels_for(kind, 8)
    x = np.random.default_rng(3).normal(0, 2, (8, 4)).astype(np.float32)

    assert value(loss_of(name, kind), y, x) == value(loss_of(name, kind, **options), y, x)
    for option in options:
        other = loss_of(name, kind, **{**options, option: options[option] * 1.5})
        assert value(other, y, x) != pytest.approx(value(loss_of(name, kind), y, x), rel=1e-4)


def test_a_class_in_no_record_or_in_all_is_weighted_as_if_in_one_or_in_all_but_one():
    y, x = np.array([[1, 0], [0, 1]], np.int32), np.array([[0.3, -2.0], [1.0, 0.5]], np.float32)

    extreme = make_loss("weighted_bce", "multilabel", np.array([0, RECORDS]), RECORDS)
    near = make_loss("weighted_bce", "multilabel", np.array([1, RECORDS - 1]), RECORDS)

    assert value(extreme, y, x) == value(near, y, x)


# Limits, where one loss becomes another


@few
@given(batches_of_rows)
def test_focal_without_focus_and_asymmetric_without_asymmetry_are_bce(batch):
    y, x = batch
    expected = pytest.approx(value(loss_of("bce", "multilabel"), y, x), rel=1e-5)
    assert value(loss_of("focal", "multilabel", gamma=0.0), y, x) == expected
    assert (
        value(loss_of("asymmetric", "multilabel", gamma_neg=0.0, gamma_pos=0.0, clip=0.0), y, x) == expected
    )


@few
@given(batches_of_classes)
def test_no_adjustment_is_plain_cross_entropy(batch):
    y, x = batch
    expected = pytest.approx(value(loss_of("ce", "multiclass"), y, x), rel=1e-6)
    assert value(loss_of("logit_adjusted", "multiclass", tau=0.0), y, x) == expected


def test_the_focal_loss_agrees_with_that_of_keras():
    y, x = labels_for("multilabel", 6), np.linspace(-6, 6, 24, dtype=np.float32).reshape(6, 4)
    theirs = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.3, gamma=1.5, from_logits=True
    )
    ours = loss_of("focal", "multilabel", gamma=1.5, alpha=0.3)
    assert value(ours, y, x) == pytest.approx(float(theirs(y.astype(np.float32), x)), rel=1e-4)


def test_negatives_easier_than_the_clip_count_nothing():
    x = np.array([[-4.0, -3.5, -3.0, -2.95]], np.float32)  # probabilities .018 to .0497
    loss = loss_of("asymmetric", "multilabel", clip=0.05, gamma_neg=1.0)
    assert value(loss, np.zeros((1, 4), np.int32), x) == 0


# Weights


def test_a_finding_of_half_the_records_is_weighted_as_in_plain_bce():
    y, x = np.array([[1], [0]], np.int32), np.array([[0.3], [-2.0]], np.float32)
    weighted = make_loss("weighted_bce", "binary", np.array([500]), RECORDS)
    assert value(weighted, y, x) == pytest.approx(value(loss_of("bce", "binary"), y, x), rel=1e-6)


def test_with_weighted_bce_the_right_prior_is_one_half():
    # A constant logit for all records is best where its gradient is zero.
    y = np.array([1] * 3 + [0] * 17, np.int32)
    loss = make_loss("weighted_bce", "binary", np.array([3]), 20)
    assert gradients(loss, y, np.zeros((20, 1), np.float32)).sum() == pytest.approx(0, abs=1e-6)


def test_with_class_weights_every_class_counts_the_same_over_the_training_records():
    y = np.repeat(np.arange(4), [8, 4, 3, 1]).astype(np.int32)
    loss = make_loss("weighted_ce", "multiclass", np.bincount(y), len(y))
    found = gradients(loss, y, np.zeros((16, 4), np.float32)).sum(axis=0)
    np.testing.assert_allclose(found, 0, atol=1e-7)


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.parametrize("counts", ["none", "all"])
def test_a_class_without_records_or_with_all_of_them_gets_a_finite_loss(kind, name, counts):
    k = len(COUNTS[kind])
    held = np.array([RECORDS] + [0] * (k - 1)) if kind == "multiclass" else np.zeros(k)
    loss = make_loss(name, kind, held if counts == "none" else np.full(k, RECORDS), RECORDS)
    labels = labels_for(kind, 12)
    logits = np.zeros((12, k), np.float32)
    assert np.isfinite(value(loss, labels, logits))
    assert np.isfinite(gradients(loss, labels, logits)).all()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_padded_rows_count_for_nothing(kind, name):
    loss, k = loss_of(name, kind), len(COUNTS[kind])
    labels, logits = labels_for(kind, 6), np.random.default_rng(0).normal(size=(6, k)).astype(np.float32)
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    assert value(loss, labels, logits, mask) == pytest.approx(value(loss, labels[:4], logits[:4]), rel=1e-6)
    assert value(loss, labels, logits, np.zeros(6, np.float32)) == 0


def test_a_row_of_weight_two_counts_as_two_rows():
    loss, rows = loss_of("weighted_ce", "multiclass"), [0, 1, 1, 2]
    labels, logits = labels_for("multiclass", 3), np.eye(3, 4, dtype=np.float32)
    weighted = value(loss, labels, logits, np.array([1, 2, 1], np.float32))
    assert weighted == pytest.approx(value(loss, labels[rows], logits[rows]), rel=1e-6)


# Precision


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.parametrize("size", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_huge_logits_give_finite_losses_and_gradients(kind, name, size, dtype):
    loss, k = loss_of(name, kind), len(COUNTS[kind])
    labels = labels_for(kind, 12)
    signs = np.where(np.arange(12 * k).reshape(12, k) % 5 < 2, 1.0, -1.0)
    logits = keras.ops.cast(signs * size, dtype)
    assert np.isfinite(value(loss, labels, logits))
    found = gradients(loss, labels, logits).astype(np.float32)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_half_precision_logits_are_computed_in_float32(kind, name):
    loss, k = loss_of(name, kind), len(COUNTS[kind])
    logits = np.random.default_rng(1).normal(0, 4, (12, k)).astype(np.float16)
    half, full = loss(labels_for(kind, 12), logits), loss(labels_for(kind, 12), logits.astype(np.float32))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
    assert float(half) == float(full)


@pytest.mark.parametrize("clip", [1e-12, 1e-8, 1e-4])
def test_a_tiny_clip_leaves_a_confident_mistake_finite(clip):
    loss = loss_of("asymmetric", "multilabel", clip=clip)
    logits = np.full((1, 4), 1e4, np.float32)
    assert np.isfinite(value(loss, np.zeros((1, 4), np.int32), logits))
    assert np.isfinite(gradients(loss, np.zeros((1, 4), np.int32), logits)).all()


# Use


def test_each_task_has_the_losses_that_are_made_for_it():
    assert {kind: list(names) for kind, names in LOSSES.items()} == {
        "binary": ["bce", "weighted_bce", "focal"],
        "multiclass": ["ce", "weighted_ce", "logit_adjusted", "focal", "ldam"],
        "multilabel": ["bce", "weighted_bce", "focal", "asymmetric"],
    }


@pytest.mark.parametrize(
    ("kind", "name", "options", "error"),
    [
        (
            "multilabel", "assymetric", {},
            "`loss=assymetric`: no loss for multilabel (did you mean asymmetric?); "
            "expected one of bce, weighted_bce, focal, asymmetric, "
            "or your own as module:function or file.py:function",
        ),
        (
            "binary", "asymmetric", {},
            "`loss=asymmetric`: no loss for binary (it is for multilabel); "
            "expected one of bce, weighted_bce, focal, "
            "or your own as module:function or file.py:function",
        ),
        (
            "multiclass", "bce", {},
            "`loss=bce`: no loss for multiclass (it is for binary and multilabel); "
            "expected one of ce, weighted_ce, logit_adjusted, focal, ldam, "
            "or your own as module:function or file.py:function",
        ),
        (
            "multilabel", "ldam", {},
            "`loss=ldam`: no loss for multilabel (it is for multiclass); "
            "expected one of bce, weighted_bce, focal, asymmetric, "
            "or your own as module:function or file.py:function",
        ),
        (
            "multiclass", "ldam", {"defer": 1.5},
            "`loss_options.defer=1.5`: expected a share from 0 to 1",
        ),
        (
            "multiclass", "ldam", {"scale": 0.0},
            "`loss_options.scale=0.0`: expected a number above 0",
        ),
        (
            "multiclass", "ldam", {"beta": 1.0},
            "`loss_options.beta=1.0`: expected a number of at least 0 and below 1",
        ),
        (
            "binary", "focal", {"gama": 1.0},
            "`loss_options.gama`: the loss focal has no such option (did you mean gamma?); "
            "expected one of gamma, alpha",
        ),
        (
            "multiclass", "ce", {"tau": 1.0},
            "`loss_options.tau`: the loss ce has no such option; it has none",
        ),
        (
            "binary", "focal", {"gamma": -1.0},
            "`loss_options.gamma=-1.0`: expected a number of at least 0",
        ),
        (
            "binary", "focal", {"alpha": 1.0},
            "`loss_options.alpha=1.0`: expected a number of at least 0 and below 1",
        ),
        (
            "multilabel", "asymmetric", {"clip": float("nan")},
            "`loss_options.clip=nan`: expected a number of at least 0 and below 1",
        ),
        (
            "multiclass", "logit_adjusted", {"tau": -0.5},
            "`loss_options.tau=-0.5`: expected a number of at least 0",
        ),
    ],
)  # fmt: skip
def test_bad_use_is_refused_in_one_line(kind, name, options, error):
    with pytest.raises(UsageError) as raised:
        loss_of(name, kind, **options)
    assert str(raised.value) == error


ON_JAX = """
import json, sys
import jax, keras, numpy as np
from cxr_records.trainers.losses import LOSSES, make_loss
assert keras.backend.backend() == "jax"
found = {}
for key, (counts, labels, logits) in json.load(sys.stdin).items():
    kind, name = key.split()
    loss = make_loss(name, kind, np.array(counts), 1000)
    labels, logits = np.array(labels, np.int32), np.array(logits, np.float32)
    huge = jax.grad(lambda x: loss(labels, x))(jax.numpy.float16(1e4) * jax.numpy.sign(logits))
    found[key] = [float(loss(labels, logits)), bool(np.isfinite(huge).all())]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_jax_gives_the_same_losses_and_finite_gradients():
    random = np.random.default_rng(2)
    given = {}
    for kind, name in ALL:
        logits = random.normal(0, 3, (12, len(COUNTS[kind]))).astype(np.float32)
        given[f"{kind} {name}"] = [COUNTS[kind].tolist(), labels_for(kind, 12).tolist(), logits.tolist()]
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX],
        input=json.dumps(given),
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for key, (_, labels, logits) in given.items():
        kind, name = key.split()
        expected = value(loss_of(name, kind), np.array(labels, np.int32), np.array(logits, np.float32))
        assert found[key] == [pytest.approx(expected, rel=1e-5), True], key


@pytest.mark.parametrize("name", ["bce", "weighted_bce"])
def test_the_least_loss_is_where_odds_are_moved_by_what_the_loss_weighs(name):
    """The loss itself, about the odds that an evaluation undoes; images are alike, and 30% are positive."""
    records, total, truth = np.array([40.0, 700.0, 0.0]), 1000, 0.3
    loss = make_loss(name, "multilabel", records, total)
    logits = np.log(truth / (1 - truth)) + shift_of_loss(name, {}, records, total)

    def expected(logits: np.ndarray) -> float:
        rows = logits[np.newaxis].astype(np.float32)
        both = [np.asarray(loss.call(np.full((1, 3), y), rows))[0] for y in (1, 0)]
        return truth * both[0] + (1 - truth) * both[1]

    for place in range(3):
        step = 0.3 * np.eye(3)[place]
        assert expected(logits) < min(expected(logits - step), expected(logits + step))


@pytest.mark.parametrize(
    ("name", "options"),
    [("ce", {}), ("weighted_ce", {}), ("logit_adjusted", {}), ("logit_adjusted", {"tau": 0.5})],
)
def test_the_least_loss_of_a_softmax_is_where_probabilities_are_moved_by_what_the_loss_weighs(name, options):
    records, total, truth = np.array([100.0, 700.0, 200.0]), 1000, np.array([0.2, 0.5, 0.3])
    loss = make_loss(name, "multiclass", records, total, **options)
    logits = np.log(truth) + shift_of_loss(name, options, records, total)

    def expected(logits: np.ndarray) -> float:
        rows = logits[np.newaxis].astype(np.float32)
        each = [np.asarray(loss.call(np.array([c]), rows))[0] for c in range(3)]
        return float(truth @ each)

    for place in range(3):
        step = 0.3 * np.eye(3)[place]
        assert expected(logits) < min(expected(logits - step), expected(logits + step))


def test_a_loss_that_multiplies_no_odds_has_no_shift():
    assert shift_of_loss("focal", {}, np.ones(2), 9) is None
    assert shift_of_loss("mine.py:loss", {}, np.ones(2), 9) is None
