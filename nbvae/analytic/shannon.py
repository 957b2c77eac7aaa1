"""Shannon's R(D): of a Gaussian source in closed form, of a discrete one by Blahut and Arimoto's turns."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nbvae import checks
from nbvae.analytic._checked import Array, Numbers, fill, like, positive, real, spectrum, sums_after


def gaussian_rd(eigenvalues: Array, water_level: Numbers) -> tuple[Numbers, Numbers]:
    """A point (rate, mse) of Shannon's R(D) for a Gaussian source: reverse water-filling at `water_level` s > 0, or an array.

        R = Σ_i ½ log⁺(λ_i/s)        D = Σ_i min(λ_i, s)

    (Kolmogorov 1956; Shannon 1959; Cover & Thomas 2006, theorem 10.3.3.) The slope dD/dR is −2s. `eigenvalues`: (n,) of
    the covariance, in any order. Raises `ValueError` for negative, non-finite or all-zero eigenvalues and for s ≤ 0.

    >>> rate, mse = gaussian_rd([4.0, 1.0], 1.0)
    >>> round(rate, 5), mse
    (0.69315, 2.0)
    """
    values = spectrum("eigenvalues", *real("eigenvalues", eigenvalues))
    return fill(values, positive("water_level", water_level))


def gaussian_rate_distortion(eigenvalues: Array, mse: Numbers) -> Numbers:
    """Shannon's R(D) in nats at the squared error `mse` > 0, a number or an array: `gaussian_rd` solved for its level.

    No code reaches `mse` at a lower rate, and no source with this covariance needs a higher one. `eigenvalues`: (n,) of the
    covariance, as for `gaussian_rd`.

    >>> round(gaussian_rate_distortion([4.0, 1.0], 2.0), 5)
    0.69315
    """
    values = spectrum("eigenvalues", *real("eigenvalues", eigenvalues))
    target = positive("mse", mse)
    count, left_over = np.arange(1, np.count_nonzero(values) + 1), sums_after(values)
    at_eigenvalue = count * values[: len(count)] + left_over[count]  # MSE at s = λ_i, falling with i
    active = (at_eigenvalue > target[..., None]).sum(-1)
    level = np.where(active > 0, (target - left_over[active]) / np.maximum(active, 1), values[0])
    return fill(values, level)[0]


def gaussian_distortion_rate(eigenvalues: Array, rate: Numbers) -> Numbers:
    """Shannon's D(R), the least squared error at `rate` ≥ 0 nats, a number or an array: the inverse of R(D).

    `eigenvalues`: (n,) of the covariance, as for `gaussian_rd`.

    >>> round(gaussian_distortion_rate([4.0, 1.0], 0.6931471805599453), 5)
    2.0
    """
    values = spectrum("eigenvalues", *real("eigenvalues", eigenvalues))
    target, _ = real("rate", rate)
    if (target < 0).any():
        raise ValueError(f"rate must be >= 0, got {target.min():g}")
    logs = np.log(values[values > 0])
    total, count = np.concatenate([[0.0], np.cumsum(logs)]), np.arange(1, len(logs) + 1)
    at_eigenvalue = (total[1:] - count * logs) / 2  # R at s = λ_i, rising with i
    active = (at_eigenvalue < target[..., None]).sum(-1)
    log_level = np.where(active > 0, (total[active] - 2 * target) / np.maximum(active, 1), logs[0])
    return like(np.minimum(values, np.exp(log_level)[..., None]).sum(-1))


class DiscreteRD(NamedTuple):
    """A point of R(D) of a discrete source, and the code that reaches it."""

    rate: float  # I(x; y), nats
    distortion: float  # E d(x, y)
    marginal: Float[np.ndarray, " m"]  # of the reproductions y
    channel: Float[np.ndarray, "n m"]  # q(y|x)


def blahut_arimoto(
    source: Array, distortion: Array, beta: float, tolerance: float = 1e-9, iterations: int = 100_000
) -> DiscreteRD:
    """The point of Shannon's R(D) of a discrete source where the slope dD/dR is −β: the least E d(x, y) + β I(x; y).

    Two steps in turn, each the best answer to the other: q(y|x) ∝ m(y) exp(−d(x, y)/β), and m(y) = Σ_x p(x) q(y|x)
    (Blahut 1972; Arimoto 1972). A β-VAE does the same with a prior in the place of m and an encoder in that of q.

    - `source`: the probabilities (n,) of the x, which sum to 1.
    - `distortion`: d(x, y) of each x and each reproduction y, (n, m).
    - `beta`: > 0.
    - `tolerance`: the most that D/β + R may be above its minimum, nats: a bound on that is known at every step.
    - `iterations`: after so many `RuntimeError` is raised.

    >>> found = blahut_arimoto([0.5, 0.5], [[0, 1], [1, 0]], beta=1.0)  # a fair coin and its errors: R = log 2 − h(D)
    >>> round(found.rate, 6), round(found.distortion, 6)
    (0.110944, 0.268941)
    """
    p, d = positive("source", source), real("distortion", distortion)[0]
    beta, tolerance = checks.positive("beta", beta), checks.positive("tolerance", tolerance)
    if p.ndim != 1 or abs(p.sum() - 1) > 1e-9 or d.ndim != 2 or len(d) != len(p) or not d.shape[1]:
        raise ValueError(f"source must be probabilities (n,) that sum to 1, distortion (n, m); got {p.shape}, {d.shape}")
    least = d.min(1, keepdims=True)
    kernel = np.exp((least - d) / beta)
    marginal = np.full(d.shape[1], 1 / d.shape[1])
    for _ in range(checks.whole("iterations", iterations)):
        growth = (p / (kernel @ marginal)) @ kernel  # m(y) is to be multiplied by that; at the optimum it is at most 1
        if math.log(growth.max()) <= tolerance:
            break
        marginal = marginal * growth
    else:
        raise RuntimeError(f"not within {tolerance:g} nats after {iterations} iterations: give more, or a larger tolerance")
    channel = kernel * marginal
    channel /= channel.sum(1, keepdims=True)
    marginal = p @ channel
    joint = p[:, None] * channel
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(joint > 0, np.log(channel / marginal), 0.0)
    return DiscreteRD(float((joint * ratio).sum()), float((joint * d).sum()), marginal, channel)
