"""Class-balanced sampling: how often each record is drawn, beside the rule written plainly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.balancing import expected_draws, reached, times_drawn
from cxr_records.findings import FINDINGS
from cxr_records.tasks import Task, parse_task


def classes_of(task: Task, label) -> list[str]:
    """The classes that a record is drawn for; No Finding is one of multilabel's."""
    if task.kind == "multilabel":
        return [name for name, held in zip(FINDINGS, label, strict=True) if held] or ["No Finding"]
    return [task.class_names[label]]


def plain_expectation(task: Task, labels, shards: list[int]) -> list[float]:
    """A class is drawn, each as likely, then one of its records; a shard gives as many as it holds."""
    held = [classes_of(task, label) for label in labels]
    sizes = {name: sum(name in each for each in held) for names in held for name in names}
    chances = [sum(1 / sizes[name] for name in each) / len(sizes) for each in held]
    expected, start = [], 0
    for count in shards:
        part = chances[start : start + count]
        expected += [count * chance / sum(part) for chance in part]
        start += count
    return expected


@st.composite
def splits(draw):
    """A task, the labels of its records, and how many each shard holds; some hold none."""
    task = parse_task(draw(st.sampled_from(["multilabel", "multiclass", "multiclass:No Finding", "binary"])))
    shards = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    n = sum(shards)
    if task.kind == "multilabel":
        few = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=14, max_size=14)
        labels = np.array(draw(st.lists(few, min_size=n, max_size=n)))
    else:
        label = st.integers(0, len(task.class_names) - 1)
        labels = np.array(draw(st.lists(label, min_size=n, max_size=n)))
    return task, labels, shards


@given(splits())
def test_a_record_is_drawn_as_often_as_a_uniform_draw_of_a_class_and_then_of_a_record_says(split):
    task, labels, shards = split

    found = expected_draws(task, labels, shards)

    np.testing.assert_allclose(found, plain_expectation(task, labels, shards), rtol=1e-12)
    for part, count in zip(np.split(found, np.cumsum(shards)[:-1]), shards, strict=True):
        assert part.sum() == pytest.approx(count)


@given(splits(), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_draws_the_whole_numbers_beside_the_expectation_and_as_many_as_a_shard_holds(
    split, seed, epoch
):
    task, labels, shards = split
    expected = expected_draws(task, labels, shards)
    upto = reached(expected, shards)

    for number, part in enumerate(np.split(np.arange(len(labels)), np.cumsum(shards)[:-1])):
        times = times_drawn(upto[part], seed, number, epoch)
        assert times.sum() == shards[number]
        assert (np.abs(times - expected[part]) < 1 + 1e-9).all()


def test_the_classes_of_a_shard_come_equally_often():
    labels = np.repeat([0, 3, 7], [90, 9, 1])
    expected = expected_draws(parse_task("multiclass"), labels, [100])

    assert [expected[labels == label].sum() for label in (0, 3, 7)] == pytest.approx([100 / 3] * 3)


def test_images_without_a_finding_are_a_class_of_their_own():
    labels = np.zeros((100, 14), int)
    labels[:10, FINDINGS.index("Mass")] = 1
    expected = expected_draws(parse_task("multilabel"), labels, [100])

    assert expected[:10].sum() == pytest.approx(50)
    assert expected[10:].sum() == pytest.approx(50)


def test_over_the_epochs_each_record_comes_as_often_as_it_should_to_within_three_times():
    """Independent draws would be off by the root of the epochs: here by some 13 times of 500."""
    random = np.random.default_rng(0)
    labels = random.choice(14, 300, p=np.arange(14, 0, -1) ** 2 / 1015)
    expected = expected_draws(parse_task("multiclass"), labels, [300])
    upto = reached(expected, [300])

    times = np.zeros(300)
    for epoch in range(500):
        times += times_drawn(upto, 5, 0, epoch)

        assert np.abs(times - (epoch + 1) * expected).max() < 3


def test_seeds_and_shards_draw_others():
    upto = np.cumsum(np.full(40, 0.5))

    first = times_drawn(upto, 0, 0, 0)
    others = [times_drawn(upto, seed, shard, 0) for seed, shard in ((1, 0), (0, 1), (2, 0), (0, 2), (3, 0))]

    assert any((other != first).any() for other in others)


def test_what_takes_no_part_is_never_drawn():
    expected = np.array([0, 1.5, 0, 0.5, 0, 0, 2.25, 0.75, 0])
    upto = reached(expected, [5, 4])

    for epoch in range(20):
        times = np.concatenate([times_drawn(upto[:5], 1, 0, epoch), times_drawn(upto[5:], 1, 1, epoch)])
        assert times[expected == 0].tolist() == [0] * 5
        assert (times[:5].sum(), times[5:].sum()) == (2, 3)
