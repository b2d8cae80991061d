"""8-bit grey made smaller as Pillow does it, bit for bit, in half the time where the extension is there."""

import functools

import numpy as np
from PIL import Image

try:
    from cxr_records import _pixels
except ImportError:  # installed without a C compiler
    _pixels = None  # type: ignore[assignment]

_BITS = 22  # of a weight behind the point (Pillow's Resample.c, PRECISION_BITS)
_LOW_BITS = 11  # those in the lower half of a weight
_GROUP = 8  # weights come in groups of so many


def resized(grey: Image.Image | np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    """Resizes 8-bit grey to a square, as `PIL.Image.resize` does.

    Args:
        grey: of mode L, or uint8 [height, width].
        side: in pixels.
        resample: the filter.

    Returns:
        uint8 [side, side], not to be written to.
    """
    if isinstance(grey, np.ndarray):
        height, width = grey.shape
        if (width, height) == (side, side):
            return grey
        # Of the other filters, which are not the default, some have weights below 0, and one has borders that
        # the last bit of a number moves.
        if _pixels and resample == Image.Resampling.BILINEAR and side <= min(width, height):
            across, down = _weights(width, side), _weights(height, side)
            if across and down:
                small = _pixels.shrink(np.ascontiguousarray(grey), width, height, *across, *down)
                return np.frombuffer(small, np.uint8).reshape(side, side)
        grey = Image.fromarray(grey)
    return np.asarray(grey.resize((side, side), resample))


@functools.lru_cache(maxsize=16)
def _weights(size: int, side: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns for each pixel that comes out the first that goes in, and what each counts from there on.

    Each step is one of Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, in their order, so that not
    the last bit differs.

    Returns:
        int32 [side], and int16 [2, side, taps] of upper and lower bits, as the extension takes them; None for
        an image that is smaller than the groups of its weights.
    """
    scale = size / side
    centre = (np.arange(side) + 0.5) * scale
    first = np.maximum((centre - scale + 0.5).astype(int), 0)
    end = np.minimum((centre + scale + 0.5).astype(int), size)
    taps = -(-int((end - first).max()) // _GROUP) * _GROUP
    if taps > size:
        return None
    start = np.minimum(first, size - taps)  # so that no group reaches past the last pixel
    place = start[:, None] + np.arange(taps)
    weight = 1 - np.abs((place - centre[:, None] + 0.5) * (1 / scale))
    weight[(place < first[:, None]) | (place >= end[:, None])] = 0
    weight = np.maximum(weight, 0)
    weight /= np.add.accumulate(weight, axis=1)[:, -1:]  # one by one, as a sum of many adds in another order
    whole = (0.5 + weight * (1 << _BITS)).astype(np.int32)
    halves = np.stack([whole >> _LOW_BITS, whole & ((1 << _LOW_BITS) - 1)])
    return start.astype(np.int32), halves.astype(np.int16)
