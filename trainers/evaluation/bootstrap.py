"""95% intervals by drawing patients, and images, with replacement.

A patient of the official test set brings nine images on average, which are alike: intervals over images are
too narrow. Both are given, so that the difference shows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cxr_records.errors import UsageError
from cxr_records.seeding import generator
from cxr_records.trainers.evaluation.results import Interval

DRAWS = 1000
DIGITS = 6  # behind the point, in metrics.json
ENOUGH = 0.8  # share of the draws that must have a mean
_CHUNK = 50  # draws at a time, which bounds memory: 50 x 25,596 images are 10 MB an array

# Weights, which are whole numbers, float64 [n, draws] -> float [draws, values].
Statistic = Callable[[np.ndarray], np.ndarray]


def draws_of(groups: np.ndarray, draws: int, seed: int, name: str) -> Iterator[np.ndarray]:
    """Yields how often each row is counted in each draw: int16 [n, up to 50], `draws` columns in all.

    Args:
        groups: [n], what is drawn together: patient ids, or the rows themselves.
        draws: how many.
        seed: the same for the same draws, whatever is computed from them.
        name: of the kind of draws.
    """
    _, places = np.unique(groups, return_inverse=True)
    count = int(places.max()) + 1
    random = generator(seed, "bootstrap", name)
    for start in range(0, draws, _CHUNK):
        rows = min(_CHUNK, draws - start)
        drawn = random.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, np.newaxis] * count
        counts = np.bincount(drawn.ravel(), minlength=rows * count).astype(np.int16).reshape(rows, count)
        yield np.ascontiguousarray(counts.T)[places]


def check_draws(draws: int) -> None:
    """Refuses a number of draws below 0.

    Raises:
        UsageError: it is.
    """
    if draws < 0:
        raise UsageError(f"found `draws={draws}`; expected 0 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A statistic's numbers, on the rows as they are and in each draw; means of them stand behind them.

    Attributes:
        values: float64 [m].
        drawn: float64 [draws, m], in draws of patients; NaN where a draw has no such number.
        image_drawn: the same in draws of images; None where there are none.
        first_mean: the place of the first mean.
    """

    values: np.ndarray
    drawn: np.ndarray
    image_drawn: np.ndarray | None
    first_mean: int

    def interval(self, place: int) -> Interval:
        """Returns a number with its intervals: the 2.5th and 97.5th percentile of the draws that have it.

        A mean has none where fewer than 80% of the draws hold every class that it is over: those that do are
        no fair sample of the draws, and a mean of fewer classes is another number.
        """
        value = rounded(self.values[place])
        if value is None or not len(self.drawn):
            return Interval(value)
        low, high = self._bounds(self.drawn, place)
        image_low, image_high = self._bounds(self.image_drawn, place)
        reason = None
        if low is None and place >= self.first_mean:
            share = math.floor(100 * np.mean(~np.isnan(self.drawn[:, place])))
            reason = f"only {share}% of the draws hold every class" if share else "no draw holds every class"
        return Interval(value, low, high, image_low, image_high, no_interval=reason)

    def p_value(self, place: int) -> float | None:
        """Returns the two-sided p-value of a number being 0; None where it has no interval.

        Twice the smaller of (1 + draws at or below 0) and (1 + draws at or above 0), by 1 + all draws that
        have the number, and at most 1 (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
        section 4.2.5 for the ones). It cannot be below 2 / (1 + draws).
        """
        if self.interval(place).low is None:
            return None
        drawn = self.drawn[~np.isnan(self.drawn[:, place]), place]
        least = min((drawn <= 0).sum(), (drawn >= 0).sum())
        return min(1.0, 2 * (1 + int(least)) / (1 + len(drawn)))

    def _bounds(self, drawn: np.ndarray | None, place: int) -> tuple[float | None, float | None]:
        if drawn is None:
            return None, None
        defined = drawn[~np.isnan(drawn[:, place]), place]
        needed = ENOUGH * len(drawn) if place >= self.first_mean else 1
        if len(defined) < needed:
            return None, None
        low, high = np.percentile(defined, [2.5, 97.5])
        return rounded(low), rounded(high)


def sample(
    statistic: Statistic,
    patients: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    means: Sequence[Sequence[int]] = (),
    images: bool = True,
) -> Sample:
    """Computes a statistic on the rows and in each draw.

    Args:
        statistic: of weights; the same draws serve all its numbers, so that they can be compared.
        patients: [n].
        draws: of each kind; 0 for values alone.
        seed: of the draws.
        means: for each, the places of the numbers that it is the mean of. It is over those that the rows as
            they are have; a draw that lacks one of these has no such mean.
        images: whether to draw images too.

    Raises:
        UsageError: fewer than 0 draws.
    """
    check_draws(draws)
    count = len(patients)
    values = statistic(np.ones((count, 1)))[0]
    held = [[place for place in places if not np.isnan(values[place])] for places in means]

    def with_means(numbers: np.ndarray) -> np.ndarray:
        """[draws, values] -> [draws, values and means]."""
        columns = [
            numbers[:, places].mean(axis=1) if places else np.full(len(numbers), np.nan) for places in held
        ]
        return np.column_stack([numbers, *columns])

    def drawn(groups: np.ndarray, name: str) -> np.ndarray:
        # Float64 is what sums of weights are made in, and there are many sums of each.
        each = [statistic(weights.astype(np.float64)) for weights in draws_of(groups, draws, seed, name)]
        return with_means(np.concatenate(each)) if each else np.empty((0, len(values) + len(means)))

    return Sample(
        with_means(values[np.newaxis])[0],
        drawn(patients, "patients"),
        drawn(np.arange(count), "image_") if images else None,
        len(values),
    )


def intervals(
    statistic: Statistic,
    patients: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    means: Sequence[Sequence[int]] = (),
    images: bool = True,
) -> list[Interval]:
    """Returns value and intervals of each of a statistic's numbers, and of its means behind them.

    Draws in which a number is undefined do not count for it. See `sample` for the arguments and
    `Sample.interval` for when a mean has no interval.
    """
    found = sample(statistic, patients, draws, seed, means, images)
    return [found.interval(place) for place in range(len(found.values))]


def by_patient(patients: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the sum of the rows of each patient, in the order of `np.unique(patients)`: [patients, m].

    A draw of patients weighs such sums as it weighs the rows, and there are fewer of them.

    Args:
        patients: [n].
        rows: numbers [n, m].
    """
    order = np.argsort(patients, kind="stable")
    starts = np.unique(patients[order], return_index=True)[1]
    sums: np.ndarray = np.add.reduceat(rows[order], starts, axis=0)
    return sums


def rounded(value: float) -> float | None:
    """Returns the value with its digits behind the point, as metrics.json has it; None for NaN."""
    return None if np.isnan(value) else round(float(value), DIGITS)
