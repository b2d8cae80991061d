import numpy as np

LANES: int

def unfilter(rows: bytes, width: int, height: int, /) -> bytes | None: ...
def shrink(
    pixels: np.ndarray,
    width: int,
    height: int,
    first_x: np.ndarray,
    weights_x: np.ndarray,
    first_y: np.ndarray,
    weights_y: np.ndarray,
    /,
) -> bytes: ...
