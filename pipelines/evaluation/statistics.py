"""Shares and means with their 95 % intervals."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def share_of(correct: Sequence[bool]) -> dict[str, float]:
    """The share that is correct: {"k", "n", "share", "low", "high"}, with Wilson's interval."""
    k, n = sum(correct), len(correct)
    low, high = wilson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (low, high) for the share of k correct out of n, n at least 1 (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Mean of values (n,) and its 95 % percentile bootstrap interval: [mean, low, high], of 1,000 resamples."""
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    return np.array([values.mean(), *np.quantile(values[draws].mean(axis=1), [0.025, 0.975])])
