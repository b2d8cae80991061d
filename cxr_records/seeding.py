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
    from cxr_records.columns import chunks, pa, pc  # the other two are for workers, which need no Arrow

    parts = [part.cast(pa.string()) if isinstance(part, pa.Array) else str(part) for part in identity]
    texts = pc.binary_join_element_wise(str(seed), *parts, "\0").cast(pa.binary())
    hashes = np.empty(len(texts), np.uint64)
    for part in chunks(len(texts)):
        some = [hashlib.blake2b(text, digest_size=8).digest() for text in texts[part].to_pylist()]
        hashes[part] = np.frombuffer(b"".join(some), ">u8")
    return hashes


def generator(seed: int, *identity: str | int) -> np.random.Generator:
    """Returns a generator of its own for this identity, for example (seed, image_id, copy)."""
    return np.random.Generator(np.random.PCG64(keyed_hash(seed, *identity)))
