"""Pictures that look alike, found among very many without comparing every pair.

Outlines of 64 bits that differ in three bits or fewer agree in at least three of six blocks of bits. So it is enough to
sort by each choice of three blocks and compare neighbours (Manku, Jain & Das Sarma, "Detecting Near-Duplicates for Web
Crawling", WWW 2007).
"""

from itertools import combinations, pairwise

import numpy as np

MOST_BITS = 3
"""Bits, of 64, in which the outlines of similar pictures may differ."""

MOST_TINT = 6
"""Levels, out of 255, by which their colours may differ on average."""

NEIGHBOURS = 8
"""Following outlines of equal blocks that each is compared with. This bounds the time on unusual data."""

_EDGES = (0, 11, 22, 33, 44, 54, 64)
_BLOCKS = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(_EDGES)]


def alike(outlines: np.ndarray, tints: np.ndarray) -> dict[int, int]:
    """The pictures that look like an earlier one: place -> the first place it looks like.

    Args:
        outlines: `look.Look.outline`, (N,) uint64.
        tints: `look.Look.tints`, (N, 48) uint8.
    """
    first = np.arange(len(outlines))
    by_outline = np.argsort(outlines, kind="stable")
    for blocks in combinations(_BLOCKS, 3):
        keys = outlines & (blocks[0] | blocks[1] | blocks[2])
        order = by_outline[np.argsort(keys[by_outline], kind="stable")]
        for shift in range(1, NEIGHBOURS + 1):
            near = keys[order[:-shift]] == keys[order[shift:]]
            if not near.any():
                break
            one, other = order[:-shift][near], order[shift:][near]
            early, late = np.minimum(one, other), np.maximum(one, other)
            new = early < first[late]
            early, late = early[new], late[new]
            shaped = _bits(outlines[early] ^ outlines[late]) <= MOST_BITS
            early, late = early[shaped], late[shaped]
            tinted = np.abs(tints[early].astype(np.int16) - tints[late]).mean(axis=1) <= MOST_TINT
            np.minimum.at(first, late[tinted], early[tinted])
    return {int(late): int(first[late]) for late in np.flatnonzero(first < np.arange(len(first)))}


def _bits(numbers: np.ndarray) -> np.ndarray:
    """The number of bits set in each uint64."""
    return np.unpackbits(numbers[:, None].view(np.uint8), axis=1).sum(axis=1)
