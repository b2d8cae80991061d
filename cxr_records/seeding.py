"""Randomness from identity: the same (seed, names) give the same numbers on every machine and worker."""

import hashlib

import numpy as np


def keyed_hash(seed: int, *identity: str | int) -> int:
    """Returns 64 bits that depend on the seed and the identity alone (BLAKE2b, RFC 7693)."""
    text = "\0".join(map(str, (seed, *identity)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(seed: int, *identity: str | int) -> np.random.Generator:
    """Returns a generator of its own for this identity, for example (seed, image_id, copy)."""
    return np.random.Generator(np.random.PCG64(keyed_hash(seed, *identity)))
