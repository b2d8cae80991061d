"""Randomness from identity: the same (seed, names) give the same numbers on every machine and worker."""

import hashlib
from typing import Any

import numpy as np


def keyed_hash(seed: int, *identity: str | int) -> int:
    """Returns 64 bits that depend on the seed and the identity alone (BLAKE2b, RFC 7693)."""
    text = "\0".join(map(str, (seed, *identity)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def keyed_hashes(seed: int, *identity: Any) -> np.ndarray:
    """Returns `keyed_hash` of each row of Arrow arrays of text or whole numbers: uint64 [n].

    What is no array stands in every row.
    """
    import pyarrow as pa  # the other two are for workers, which need none
    import pyarrow.compute as pc

    parts = [part.cast(pa.string()) if isinstance(part, pa.Array) else str(part) for part in identity]
    joined = pc.binary_join_element_wise(str(seed), *parts, "\0").cast(pa.binary())
    digests = b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in joined.to_pylist()])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def generator(seed: int, *identity: str | int) -> np.random.Generator:
    """Returns a generator of its own for this identity, for example (seed, image_id, copy)."""
    return np.random.Generator(np.random.PCG64(keyed_hash(seed, *identity)))
