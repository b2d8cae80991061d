"""95% intervals by drawing patients, and images, with replacement.

A patient of the official test set brings nine images on average, which are alike: intervals over images are
too narrow. Both are given, so that the difference shows.
"""

from collections.abc import Callable, Iterator

import numpy as np

from cxr_records.errors import UsageError
from cxr_records.seeding import generator
from cxr_records.trainers.evaluation.results import Interval

DRAWS = 1000
DIGITS = 6  # behind the point, in metrics.json
_CHUNK = 50  # draws at a time, which bounds memory: 50 x 25,596 images are 10 MB an array

Statistic = Callable[[np.ndarray], np.ndarray]  # int weights [n, draws] -> float [draws, values]


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


def intervals(
    statistic: Statistic, patients: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> list[Interval]:
    """Returns value and intervals of each of a statistic's numbers.

    Draws in which a number is undefined do not count for it.

    Args:
        statistic: of weights; the same draws serve all its numbers, so that they can be compared.
        patients: [n].
        draws: of each kind; 0 for values alone.
        seed: of the draws.

    Raises:
        UsageError: fewer than 0 draws.
    """
    check_draws(draws)
    count = len(patients)
    values = statistic(np.ones((count, 1), np.int16))[0]
    drawn = {
        "": _drawn(statistic, patients, draws, seed, "patients"),
        "image_": _drawn(statistic, np.arange(count), draws, seed, "image_"),
    }

    def interval(place: int) -> Interval:
        bounds: dict[str, float | None] = {}
        for prefix, numbers in drawn.items():
            low, high = _percentiles(numbers[:, place]) if draws else (None, None)
            bounds |= {f"{prefix}low": low, f"{prefix}high": high}
        return Interval(rounded(values[place]), **bounds)

    return [interval(place) for place in range(len(values))]


def _drawn(statistic: Statistic, groups: np.ndarray, draws: int, seed: int, name: str) -> np.ndarray:
    """The statistic of each draw: float [draws, values]."""
    each = [statistic(weights) for weights in draws_of(groups, draws, seed, name)]
    return np.concatenate(each) if each else np.empty((0, 0))


def _percentiles(numbers: np.ndarray) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of those that are defined."""
    defined = numbers[~np.isnan(numbers)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return rounded(low), rounded(high)


def rounded(value: float) -> float | None:
    """Returns the value with its digits behind the point, as metrics.json has it; None for NaN."""
    return None if np.isnan(value) else round(float(value), DIGITS)
