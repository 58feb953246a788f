"""Tables of digests: a million of them in some megabytes, looked up at once."""

from hashlib import blake2b
from typing import Any


def among(these: Any, others: Any) -> Any:
    """Which rows of one table are rows of another: n x 2 and m x 2 numbers of 64 bits."""
    import numpy as np

    pair = np.dtype([("a", "<u8"), ("b", "<u8")])
    ours, theirs = (np.ascontiguousarray(t).view(pair).reshape(-1) for t in (these, others))
    order = np.argsort(theirs, order=("a", "b")) if len(theirs) else np.zeros(0, np.int64)
    theirs = theirs[order]
    if not len(theirs):
        return np.zeros(len(ours), bool)
    places = np.searchsorted(theirs["a"], ours["a"])
    found = np.zeros(len(ours), bool)
    while True:  # as often as first halves are equal where second ones are not
        near = places < len(theirs)
        near[near] = theirs["a"][places[near]] == ours["a"][near]
        if not near.any():
            return found
        found[near] |= theirs["b"][places[near]] == ours["b"][near]
        places = np.where(near & ~found, places + 1, len(theirs))


def key_digest(key: str) -> bytes:
    """Eight bytes for a key."""
    return blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()


def pairs(digests: bytes | bytearray) -> Any:
    """Digests of sixteen bytes as n x 2 numbers."""
    import numpy as np

    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def repeated(halves: Any) -> Any:
    """Which of n x 2 numbers stand there before."""
    import numpy as np

    order = np.lexsort((np.arange(len(halves)), halves[:, 1], halves[:, 0]))
    same = np.zeros(len(halves), bool)
    same[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    return same


def holds(keys: Any, key: str) -> bool:
    """Whether a key is among sorted digests of keys."""
    import numpy as np

    digest = np.frombuffer(key_digest(key), "<u8")[0]
    place = int(np.searchsorted(keys, digest))
    return place < len(keys) and keys[place] == digest
