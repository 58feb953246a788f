"""Tables of digests: a million of them in some megabytes, looked up at once."""

from hashlib import blake2b
from typing import Any


def among(these: Any, others: Any) -> Any:
    """Which rows of one table are rows of another: n x 2 and m x 2 numbers of 64 bits."""
    import numpy as np

    if not len(others):
        return np.zeros(len(these), bool)
    order = np.argsort(others[:, 0])
    first, second = others[order, 0], others[order, 1]
    ours = np.argsort(these[:, 0])  # looked up in order, which caches like
    places = np.empty(len(these), np.int64)
    places[ours] = np.searchsorted(first, these[ours, 0])
    found = np.zeros(len(these), bool)
    while True:  # as often as first halves are equal where second ones are not
        near = places < len(first)
        near[near] = first[places[near]] == these[near, 0]
        if not near.any():
            return found
        found[near] |= second[places[near]] == these[near, 1]
        places = np.where(near & ~found, places + 1, len(first))


def number_of(key: str) -> int:
    """A number of 64 bits for a key, the same within this process alone."""
    return hash(key) & 0xFFFFFFFFFFFFFFFF


def share_of(key: str, parts: int) -> int:
    """Which of some parts a key belongs to, from 0, on every computer."""
    return (
        int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        % parts
    )


def pairs(digests: bytes | bytearray) -> Any:
    """Digests of sixteen bytes as n x 2 numbers."""
    import numpy as np

    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def repeated(halves: Any) -> Any:
    """Which of n x 2 numbers stand there before."""
    import numpy as np

    order = np.argsort(halves[:, 0], kind="stable")  # 64 bits tell all apart but what is equal
    same = np.zeros(len(halves), bool)
    same[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    return same


def holds(keys: Any, key: str) -> bool:
    """Whether a key is among the sorted numbers of keys."""
    import numpy as np

    number = np.uint64(number_of(key))
    place = int(np.searchsorted(keys, number))
    return place < len(keys) and keys[place] == number
