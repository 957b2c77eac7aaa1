"""What a finite sample does to the curve: linear models that are optimal for N examples, on these and on new ones."""

import math
from typing import Any, NamedTuple

import numpy as np

from nbvae import checks
from nbvae.analytic._checked import Array, Numbers, like, positive


class SampledRD(NamedTuple):
    """Rate (nats) and squared error of linear VAEs that are optimal for a sample, on the sample and on other examples."""

    train_rate: Any  # of the examples of the sample, nats
    train_mse: Any  # theirs, summed over dimensions
    test_rate: Any  # of other examples of the source, nats
    test_mse: Any  # theirs


def sampled_rd(eigenvalues: Array, noise: float, n: int, n_examples: int, latent_dim: int, water_level: Numbers) -> SampledRD:
    """What the optimum of `LinearGaussian` for the covariance of N examples is worth on these and on others, for large n and N.

    The source is N(0, Σ), whose covariance has a few large eigenvalues and the variance `noise` in all other directions. With
    γ = n/N and ℓ = λ/noise − 1 a direction with ℓ > √γ is found: the sample has an eigenvalue noise (1 + ℓ)(1 + γ/ℓ), and
    the squared cosine of the angle to the true direction is (1 − γ/ℓ²)/(1 + γ/ℓ). One with a smaller ℓ is lost in the noise,
    whose sample eigenvalues follow the Marchenko–Pastur law and point anywhere (Baik, Ben Arous & Péché 2005; Paul 2007).
    Latents that are left over take the largest of these. Their order is that of the sample's eigenvalues.

    - `eigenvalues`: the large eigenvalues of Σ, each above `noise`, different from each other and fewer than n.
    - `noise`: the variance in every other direction, > 0.
    - `n`, `n_examples`, `latent_dim`: the dimension, N, and the number of latents.
    - `water_level`: s = βσ² > 0, a number or an array.

    Each field has the shape of `water_level`. Raises `ValueError` for values outside these ranges.

    >>> for n_examples in (200, 1600, 10**9):
    ...     found = sampled_rd([9.0, 5.0, 3.0], 1.0, 400, n_examples, 3, 0.5)
    ...     print(f"R {found.train_rate:.3f} and {found.test_rate:.3f}, MSE {found.test_mse:.2f}")
    R 4.153 and 3.378, MSE 403.41
    R 3.597 and 3.428, MSE 399.38
    R 3.492 and 3.492, MSE 398.50
    """
    spikes, variance = positive("eigenvalues", np.atleast_1d(np.asarray(eigenvalues))), checks.positive("noise", noise)
    size, count = checks.whole("n", n, minimum=2), checks.whole("n_examples", n_examples, minimum=2)
    k, level = checks.whole("latent_dim", latent_dim), positive("water_level", water_level)
    if spikes.ndim != 1 or len(set(spikes.tolist())) < len(spikes) or spikes.min() <= variance or len(spikes) >= size:
        raise ValueError("eigenvalues must be different numbers above noise, fewer than n")
    gamma, strength = size / count, spikes / variance - 1
    found = strength > math.sqrt(gamma)
    high = strength[found]
    cosine = (1 - gamma / high**2) / (1 + gamma / high)  # squared
    # Of what a direction has that is not in its own sample eigenvector, the others have equal parts.
    rest = (high * (1 - cosine)).sum() + strength[~found].sum()
    bulk = _marchenko_pastur(gamma, size, min(k, size - len(high)))
    sample = variance * np.concatenate([(1 + high) * (1 + gamma / high), bulk])
    source = variance * np.concatenate([1 + high * cosine, np.full(len(bulk), 1 + rest / (size - len(high)))])
    order = np.argsort(-sample)[:k]
    sample, source = sample[order], source[order]
    # In each direction: encode by √h/√λ̂ with the variance s/λ̂, decode by √(λ̂ h), h = 1 − s/λ̂; inactive where λ̂ ≤ s.
    share = 1 - np.minimum(level[..., None] / np.maximum(sample, np.finfo(float).tiny), 1.0)
    total = variance * (size + strength.sum())
    noised = np.log1p(-share)
    test_rate = 0.5 * (share * (source / np.maximum(sample, np.finfo(float).tiny) - 1) - noised).sum(-1)
    test_mse = total + (share * (share - 2) * source + share * level[..., None]).sum(-1)
    return SampledRD(like(-0.5 * noised.sum(-1)), like(total - (share * sample).sum(-1)), like(test_rate), like(test_mse))


def _marchenko_pastur(gamma: float, n: int, count: int) -> np.ndarray:
    """The largest of n eigenvalues of the covariance of N = n/γ examples of N(0, I): quantiles of their law for large n."""
    angle = np.linspace(0, np.pi, 20_001)  # λ = 1 + γ + 2√γ cos θ, from the largest
    value = 1 + gamma + 2 * math.sqrt(gamma) * np.cos(angle)
    density = 2 * np.sin(angle) ** 2 / (np.pi * np.maximum(value, np.finfo(float).tiny))
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))])
    wanted = (np.arange(count) + 0.5) / n
    return np.where(wanted < min(1.0, 1 / gamma), np.interp(wanted, above, value), 0.0)  # the rest of n > N is zero
