"""95% intervals by drawing patients, and images, with replacement.

A patient of the official test set brings nine images on average, which are alike: intervals over images are
too narrow. Both are given, so that the difference shows.
"""

from collections.abc import Callable, Iterator

import numpy as np

from cxr_records.seeding import generator

DRAWS = 1000
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
        drawn = np.bincount(drawn.ravel(), minlength=rows * count).astype(np.int16).reshape(rows, count)
        yield np.ascontiguousarray(drawn.T)[places]


def intervals(
    statistic: Statistic, patients: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, float | None]]:
    """Returns value and intervals of each of a statistic's numbers.

    Args:
        statistic: of weights; the same draws serve all its numbers, so that they can be compared.
        patients: [n].
        draws: of each kind; 0 for values alone.
        seed: of the draws.

    Returns:
        For each number `value`, `low` and `high` (patients), `image_low` and `image_high`, rounded to 6
        digits, None where it is undefined. Draws in which a number is undefined do not count for it.
    """
    n = len(patients)
    found = [{"value": rounded(value)} for value in statistic(np.ones((n, 1), np.int16))[0]]
    for prefix, groups in (("", patients), ("image_", np.arange(n))):
        drawn = [statistic(weights) for weights in draws_of(groups, draws, seed, prefix or "patients")]
        values = np.concatenate(drawn) if drawn else np.full((1, len(found)), np.nan)
        for place, entry in enumerate(found):
            held = values[~np.isnan(values[:, place]), place]
            low, high = np.percentile(held, [2.5, 97.5]) if len(held) else (np.nan, np.nan)
            entry |= {f"{prefix}low": rounded(low), f"{prefix}high": rounded(high)}
    return found


def rounded(value: float) -> float | None:
    """Returns the value with 6 digits behind the point, as metrics.json has it; None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)
