"""Closed forms that everything else is measured against: the linear-Gaussian VAE and Shannon's Gaussian R(D).

Rates and distortions are in nats, MSE is the squared error summed over the n dimensions of an example, and all are
exact expectations over the data. Nothing here is fitted or sampled. Arrays may be lists, numpy arrays or CPU tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from nbvae import checks

Array = ArrayLike | Sequence | float  # whatever numpy.asarray takes
# A number in, a number out; an array in, an array of the same shape out.
Numbers = TypeVar("Numbers", float, Float[np.ndarray, "*levels"])


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimum of a linear-Gaussian β-VAE on centred data, the latents in the order of the eigenvalues.

    q(z|x) = N(encoder x, diag posterior_variance), p(x|z) = N(decoder z, sigma2 I), p(z) = N(0, I). It is unique up to
    the signs of the latents and their order, and up to a rotation among equal eigenvalues. For data of mean m, encode
    x − m and add m to the decoded mean.
    """

    rate: float  # E KL(q(z|x) ‖ p(z)), nats
    mse: float  # E‖x − decoder z‖², summed over dimensions
    distortion: float  # −E log p(x|z) = n/2 log 2πσ² + mse/2σ², nats
    sigma2: float
    beta: float
    water_level: float  # s = β σ²
    active: int  # the number of latents with λ_i > s
    rates: Float[np.ndarray, " k"]  # ½ log⁺(λ_i/s), nats
    posterior_variance: Float[np.ndarray, " k"]  # min(1, s/λ_i)
    encoder: Float[np.ndarray, "k n"]  # V, with the rows √(λ_i − s)/λ_i · u_iᵀ; zero where inactive
    decoder: Float[np.ndarray, "n k"]  # W, with the columns √(λ_i − s) · u_i; zero where inactive


class LinearGaussian:
    """Exact optimum of D + βR for N(0, Σ) data, linear encoder, linear decoder with noise σ²I, prior N(0, I).

    With λ_1 ≥ … ≥ λ_n and u_i the eigenvalues and eigenvectors of Σ, k latents and the water level s = βσ²:

        R = Σ_{i≤k} ½ log⁺(λ_i/s)        MSE = Σ_{i≤k} min(λ_i, s) + Σ_{i>k} λ_i

    Shannon's reverse water-filling on the k largest components, the others lost: `gaussian_rd` exactly while
    s ≥ λ_{k+1}, and above it below that level. β = 1 is the linear VAE of Lucas et al. (2019); with σ learned it is
    probabilistic PCA (Tipping & Bishop 1999).

    - `cov`: covariance Σ (n, n), symmetric and positive semi-definite, or the spectrum (n,) of a diagonal one.
    - `latent_dim`: k ≥ 1, may exceed n (the latents beyond n stay inactive).

    Attributes: `eigenvalues` (n,) in descending order; `eigenvectors` (n, n), one a column; `rank`, the number of
    eigenvalues above n ε λ_1, where ε is the machine precision of the dtype of `cov` (smaller ones are set to zero);
    `latent_dim`.

    Raises `ValueError` for any other `cov`: not square, not symmetric, not finite, zero, an eigenvalue below −n ε λ_1.

    >>> oracle = LinearGaussian([5, 3, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05], latent_dim=4)
    >>> best = oracle.solve(beta=10, sigma2=0.3)
    >>> round(best.rate, 5), round(best.mse, 5), best.active
    (0.25541, 9.05, 1)
    """

    def __init__(self, cov: Array, latent_dim: int):
        self.latent_dim = checks.whole("latent_dim", latent_dim)
        values, epsilon = _real("cov", cov)
        if values.ndim == 1:
            order = np.argsort(-values, kind="stable")
            vectors, values = np.eye(len(values))[:, order], values[order]
        else:
            values, vectors = np.linalg.eigh(_symmetric("cov", values, epsilon))
            values, vectors = values[::-1], vectors[:, ::-1]
        self.eigenvalues: Float[np.ndarray, " n"] = _spectrum("cov", values, epsilon)
        self.eigenvectors: Float[np.ndarray, "n n"] = vectors
        self.rank = int(np.count_nonzero(self.eigenvalues))

    def at_water_level(self, water_level: Numbers) -> tuple[Numbers, Numbers]:
        """(rate, mse) at the water level s = βσ² > 0, a number or an array: the frontier that σ and β move along.

        dMSE/dR = −2s on it, and dD/dR = −β where β is trained with σ fixed, or with σ learned.
        """
        rate, mse = _fill(self.eigenvalues[: self.latent_dim], _positive("water_level", water_level))
        return rate, mse + float(self.eigenvalues[self.latent_dim :].sum())

    def learned_beta(self, water_level: Numbers) -> Numbers:
        """The β at which a learned σ puts the optimum at the water level s > 0, a number or an array: β = n s/MSE(s).

        It never falls with s: where it stands still, nothing is left over, T_a = 0, and every level of the stretch is optimal
        for one and the same β.
        """
        level = _positive("water_level", water_level)
        return _like(len(self.eigenvalues) * level / self.at_water_level(level)[1])

    def collapse_beta(self, sigma2: float | None = None) -> float:
        """β from which on no latent is active: λ_1/σ² for a fixed σ², λ_1/mean(λ) for a learned one."""
        noise = self.eigenvalues.mean() if sigma2 is None else checks.positive("sigma2", sigma2)
        return float(self.eigenvalues[0] / noise)

    def solve(self, beta: float = 1.0, sigma2: float | None = None) -> Solution:
        """Minimise D + βR over encoder and decoder for a fixed `sigma2`, and over σ² too if it is None.

        A learned σ² equals MSE/n at the optimum, so with a latents active and T_a = Σ_{i>a} λ_i,

            σ² = T_a/(n − βa),    s = βσ²,    a = #{i ≤ k : β (i λ_i + T_i) < n λ_i}.

        The last says λ_i > s, since β(s) = n s/MSE(s) rises with s. At β = 1 and k < n, σ² is the mean of the n − k
        left-over eigenvalues (Tipping & Bishop 1999, eq. 8).

        Raises `ValueError` if β or σ² is not a finite number above zero, and where a learned σ² has no optimum: with
        k ≥ rank nothing need be left over, so for β < n/rank the loss is unbounded below as σ → 0, and at β = n/rank
        every σ² up to λ_rank/β is equally good.
        """
        beta = checks.positive("beta", beta)
        sigma2 = self._learned_sigma2(beta) if sigma2 is None else checks.positive("sigma2", sigma2)
        n, k, level = len(self.eigenvalues), self.latent_dim, beta * sigma2
        rate, mse = self.at_water_level(level)

        kept = np.zeros(k)
        kept[: min(n, k)] = self.eigenvalues[:k]
        kept[kept <= level * (1 + 8 * np.finfo(float).eps)] = level  # inactive, also when equal up to round-off
        directions = np.zeros((n, k))
        directions[:, : min(n, k)] = self.eigenvectors[:, :k]
        decoder = np.sqrt(kept - level) * directions
        return Solution(
            rate=rate,
            mse=mse,
            distortion=n / 2 * math.log(2 * math.pi * sigma2) + mse / (2 * sigma2),
            sigma2=sigma2,
            beta=beta,
            water_level=level,
            active=int(np.count_nonzero(kept > level)),
            rates=0.5 * np.log(kept / level),
            posterior_variance=level / kept,
            encoder=(decoder / kept).T,
            decoder=decoder,
        )

    def _learned_sigma2(self, beta: float) -> float:
        n, r, k = len(self.eigenvalues), self.rank, self.latent_dim
        if k >= r and beta * r <= n * (1 + 4 * np.finfo(float).eps):
            at_edge = beta * r >= n * (1 - 4 * np.finfo(float).eps)
            fate = "is equal for all small sigma2" if at_edge else "falls without bound as sigma2 goes to 0"
            raise ValueError(
                f"no optimal sigma2 for beta={beta:g} and latent_dim={k} >= rank {r} of the covariance: "
                f"the loss {fate}; use beta > {n}/{r}, fewer latents than the rank or a fixed sigma2"
            )
        value, count = self.eigenvalues[: min(k, r)], np.arange(1, min(k, r) + 1)
        left_over = _left_over(self.eigenvalues)
        active = int(np.count_nonzero(beta * (count * value + left_over[count]) < n * value))
        return float(left_over[active] / (n - beta * active))


def linear_elbo_terms(
    cov: Array,
    encoder: Array,
    decoder: Array,
    variance: Array,
    mean: Array | None = None,
    encoder_bias: Array | None = None,
    decoder_bias: Array | None = None,
) -> tuple[float, float]:
    """Exact (rate, mse) of any linear VAE, optimal or not: q(z|x) = N(Vx + a, diag v), decoded mean Wz + b.

    For data with mean m and covariance Σ, whatever their distribution, only these two moments matter:

        R = ½ Σ_i [v_i + (V Σ Vᵀ)_ii + (Vm + a)_i² − 1 − log v_i]
        MSE = tr[(I − WV) Σ (I − WV)ᵀ] + ‖(I − WV) m − Wa − b‖² + Σ_i v_i ‖w_i‖²

    - `cov`: Σ (n, n), or the spectrum (n,) of a diagonal one; `mean`: m (n,), default 0.
    - `encoder`: V (k, n); `encoder_bias`: a (k,), default 0; `variance`: v (k,) > 0.
    - `decoder`: W (n, k); `decoder_bias`: b (n,), default 0.

    Raises `ValueError` if a shape does not fit, a value is not finite, a variance not positive, or Σ no covariance: not
    symmetric, or with a negative eigenvalue.

    >>> linear_elbo_terms([3.0, 1.0], encoder=[[0.0, 0.0]], decoder=[[0.0], [0.0]], variance=[1.0])
    (0.0, 4.0)
    """
    sigma = _covariance("cov", cov)
    n = len(sigma)
    v = _positive("variance", variance)
    k = v.size
    v = _shaped("variance", v, (k,))
    big_v, w = _shaped("encoder", encoder, (k, n)), _shaped("decoder", decoder, (n, k))
    m, b = (_shaped(name, x, (n,)) for name, x in (("mean", mean), ("decoder_bias", decoder_bias)))
    centre = big_v @ m + _shaped("encoder_bias", encoder_bias, (k,))  # E z
    lost = np.eye(n) - w @ big_v
    rate = 0.5 * (v + ((big_v @ sigma) * big_v).sum(1) + centre**2 - 1 - np.log(v)).sum()
    mse = ((lost @ sigma) * lost).sum() + ((m - w @ centre - b) ** 2).sum() + (v * (w**2).sum(0)).sum()
    return float(rate), float(mse)


@dataclass(frozen=True, eq=False)
class GaussianTerms:
    """Exact terms of the rate where q(z) is Gaussian, nats. R = ② + ④ and ④ = TC + DW."""

    rate: float  # R = E KL(q(z|x) ‖ p(z))
    mutual_information: float  # ② = I(x; z)
    marginal_kl: float  # ④ = KL(q(z) ‖ p(z))
    total_correlation: float  # TC = KL(q(z) ‖ Π_d q(z_d))
    dimension_kl: float  # DW = Σ_d KL(q(z_d) ‖ p(z_d))
    dimension_kl_per_latent: Float[np.ndarray, " k"]


def linear_four_terms(
    cov: Array, encoder: Array, variance: Array, mean: Array | None = None, encoder_bias: Array | None = None
) -> GaussianTerms:
    """Exact terms of the rate for N(m, Σ) data under the encoder q(z|x) = N(Vx + a, diag v), optimal or not.

    The aggregated posterior is N(c, S) with c = Vm + a and S = V Σ Vᵀ + diag v, so that

        ② = ½ [log det S − Σ_i log v_i]        ④ = ½ [tr S + ‖c‖² − k − log det S]
        TC = ½ [Σ_i log S_ii − log det S]       DW_i = ½ [S_ii + c_i² − 1 − log S_ii]

    - `cov`: Σ (n, n), symmetric, or the spectrum (n,) of a diagonal one.
    - `encoder`: V (k, n); `encoder_bias`: a (k,), default 0.
    - `variance`: v (k,), above zero.
    - `mean`: m (n,), default 0.

    Returns the terms in nats, expectations over the data. Raises `ValueError` as `linear_elbo_terms` does.

    >>> terms = linear_four_terms([1.0, 1.0], encoder=[[0.6, 0.0], [0.6, 0.0]], variance=[0.64, 0.64])
    >>> round(terms.total_correlation, 5), round(terms.dimension_kl, 5)  # each latent is N(0, 1), their correlation 0.36
    (0.0694, 0.0)
    >>> round(terms.rate, 5), round(terms.mutual_information + terms.marginal_kl, 5)
    (0.44629, 0.44629)
    """
    sigma = _covariance("cov", cov)
    n = len(sigma)
    v = _positive("variance", variance)
    k = v.size
    v = _shaped("variance", v, (k,))
    big_v = _shaped("encoder", encoder, (k, n))
    centre = big_v @ _shaped("mean", mean, (n,)) + _shaped("encoder_bias", encoder_bias, (k,))
    s = big_v @ sigma @ big_v.T + np.diag(v)
    log_det = float(np.linalg.slogdet(s)[1])
    diagonal = np.diag(s)
    information = 0.5 * (log_det - np.log(v).sum())
    per_latent = 0.5 * (diagonal + centre**2 - 1 - np.log(diagonal))
    dependence = 0.5 * (np.log(diagonal).sum() - log_det)
    marginal = 0.5 * (diagonal.sum() + centre @ centre - k - log_det)
    return GaussianTerms(
        float(information + marginal),
        float(information),
        float(marginal),
        float(dependence),
        float(per_latent.sum()),
        per_latent,
    )


def linear_evidence(
    x: Array, decoder: Array, sigma2: float, decoder_bias: Array | None = None
) -> tuple[Float[np.ndarray, " batch"], Float[np.ndarray, "batch k"], Float[np.ndarray, "k k"]]:
    """Exact log p(x) of the decoder N(Wz + b, σ²I) under the prior N(0, I), and its true posterior p(z|x).

    With M = WᵀW/σ² + I these are p(x) = N(b, WWᵀ + σ²I) and p(z|x) = N(M⁻¹Wᵀ(x − b)/σ², M⁻¹) (Tipping & Bishop 1999, eqs. 3
    and 7).

    - `x`: the examples (batch, n).
    - `decoder`: W (n, k); `decoder_bias`: b (n,), default 0.
    - `sigma2`: the noise's variance σ², a finite number above zero.

    Returns log p(x) of each example (batch,), in nats, and of the posterior the means (batch, k) and the covariance (k, k),
    which is the same for every x. Raises `ValueError` if a shape does not fit or a value is not finite.

    >>> evidence, means, covariance = linear_evidence([[1.0]], decoder=[[1.0]], sigma2=1.0)  # p(x) is N(0, 2)
    >>> evidence.round(5).tolist(), means.tolist(), covariance.tolist()
    ([-1.51551], [[0.5]], [[0.5]])
    """
    rows, w = _real("x", x)[0], _real("decoder", decoder)[0]
    if rows.ndim != 2 or w.ndim != 2 or rows.shape[1] != len(w):
        raise ValueError(f"x must be (batch, n) and decoder (n, k), got {rows.shape} and {w.shape}")
    s2 = checks.positive("sigma2", sigma2)
    n, k = w.shape
    centred = rows - _shaped("decoder_bias", decoder_bias, (n,))
    precision = w.T @ w / s2 + np.eye(k)
    covariance = np.linalg.inv(precision)
    projected = centred @ w / s2
    means = projected @ covariance
    # Woodbury and the determinant lemma: nothing of size n × n is inverted.
    quadratic = (centred**2).sum(1) / s2 - (projected * means).sum(1)
    log_det = n * math.log(s2) + float(np.linalg.slogdet(precision)[1])
    return -0.5 * (n * math.log(2 * math.pi) + log_det + quadratic), means, covariance


def calibrated_distortion(mse: Numbers, n: int) -> Numbers:
    """D* = n/2 (log 2π MSE/n + 1), nats: the least −log N(x; x̂, σ²I) on average, at σ² = MSE/n; `mse` > 0, a number or array.

    Along a frontier of MSE with slope dMSE/dR = −2s it has the slope dD*/dR = −n s/MSE(s), which is −n/a while a latents are
    active and next to nothing is left over: a straight line.

    >>> round(calibrated_distortion(2.0, 4), 5)
    4.28946
    """
    size = checks.whole("n", n)
    return _like(size / 2 * (np.log(2 * np.pi * _positive("mse", mse) / size) + 1))


def gaussian_rd(eigenvalues: Array, water_level: Numbers) -> tuple[Numbers, Numbers]:
    """A point (rate, mse) of Shannon's R(D) for a Gaussian source: reverse water-filling at a number or array s > 0.

        R = Σ_i ½ log⁺(λ_i/s)        D = Σ_i min(λ_i, s)

    (Kolmogorov 1956; Shannon 1959; Cover & Thomas 2006, theorem 10.3.3.) The slope dD/dR is −2s. `eigenvalues`: (n,) of
    the covariance, in any order. Raises `ValueError` for negative, non-finite or all-zero eigenvalues and for s ≤ 0.

    >>> rate, mse = gaussian_rd([4.0, 1.0], 1.0)
    >>> round(rate, 5), mse
    (0.69315, 2.0)
    """
    values = _spectrum("eigenvalues", *_real("eigenvalues", eigenvalues))
    return _fill(values, _positive("water_level", water_level))


def gaussian_rate_distortion(eigenvalues: Array, mse: Numbers) -> Numbers:
    """Shannon's R(D) in nats at the squared error `mse` > 0, a number or an array: `gaussian_rd` solved for its level.

    No code reaches `mse` at a lower rate, and no source with this covariance needs a higher one.

    >>> round(gaussian_rate_distortion([4.0, 1.0], 2.0), 5)
    0.69315
    """
    values = _spectrum("eigenvalues", *_real("eigenvalues", eigenvalues))
    target = _positive("mse", mse)
    count, left_over = np.arange(1, np.count_nonzero(values) + 1), _left_over(values)
    at_eigenvalue = count * values[: len(count)] + left_over[count]  # MSE at s = λ_i, falling with i
    active = (at_eigenvalue > target[..., None]).sum(-1)
    level = np.where(active > 0, (target - left_over[active]) / np.maximum(active, 1), values[0])
    return _fill(values, level)[0]


def gaussian_distortion_rate(eigenvalues: Array, rate: Numbers) -> Numbers:
    """Shannon's D(R), the least squared error at `rate` ≥ 0 nats, a number or an array: the inverse of R(D).

    >>> round(gaussian_distortion_rate([4.0, 1.0], 0.6931471805599453), 5)
    2.0
    """
    values = _spectrum("eigenvalues", *_real("eigenvalues", eigenvalues))
    target, _ = _real("rate", rate)
    if (target < 0).any():
        raise ValueError(f"rate must be >= 0, got {target.min():g}")
    logs = np.log(values[values > 0])
    total, count = np.concatenate([[0.0], np.cumsum(logs)]), np.arange(1, len(logs) + 1)
    at_eigenvalue = (total[1:] - count * logs) / 2  # R at s = λ_i, rising with i
    active = (at_eigenvalue < target[..., None]).sum(-1)
    log_level = np.where(active > 0, (total[active] - 2 * target) / np.maximum(active, 1), logs[0])
    return _like(np.minimum(values, np.exp(log_level)[..., None]).sum(-1))


class SampledRD(NamedTuple):
    """Rate (nats) and squared error of linear VAEs that are optimal for a sample, on the sample and on other examples."""

    train_rate: Any
    train_mse: Any
    test_rate: Any
    test_mse: Any


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
    spikes, variance = _positive("eigenvalues", np.atleast_1d(np.asarray(eigenvalues))), checks.positive("noise", noise)
    size, count = checks.whole("n", n, minimum=2), checks.whole("n_examples", n_examples, minimum=2)
    k, level = checks.whole("latent_dim", latent_dim), _positive("water_level", water_level)
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
    return SampledRD(_like(-0.5 * noised.sum(-1)), _like(total - (share * sample).sum(-1)), _like(test_rate), _like(test_mse))


def _marchenko_pastur(gamma: float, n: int, count: int) -> np.ndarray:
    """The largest of n eigenvalues of the covariance of N = n/γ examples of N(0, I): quantiles of their law for large n."""
    angle = np.linspace(0, np.pi, 20_001)  # λ = 1 + γ + 2√γ cos θ, from the largest
    value = 1 + gamma + 2 * math.sqrt(gamma) * np.cos(angle)
    density = 2 * np.sin(angle) ** 2 / (np.pi * np.maximum(value, np.finfo(float).tiny))
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))])
    wanted = (np.arange(count) + 0.5) / n
    return np.where(wanted < min(1.0, 1 / gamma), np.interp(wanted, above, value), 0.0)  # the rest of n > N is zero


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
    p, d = _positive("source", source), _real("distortion", distortion)[0]
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


def _fill(values: np.ndarray, level: np.ndarray) -> tuple[Any, Any]:
    """Rate and MSE of reverse water-filling on `values` (n,), each with the shape of `level`."""
    level = level[..., None]
    rate, mse = 0.5 * np.log(np.maximum(values, level) / level).sum(-1), np.minimum(values, level).sum(-1)
    return _like(rate), _like(mse)


def _left_over(values: np.ndarray) -> np.ndarray:
    """T_a = Σ_{i>a} λ_i for a = 0 … n, summed from the smallest so that a small rest is exact."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def _like(result: Any) -> Any:
    """A float for a single number, else the array: the kind of `Numbers` that came in."""
    return result if np.ndim(result) else float(result)


def _real(name: str, value: Array) -> tuple[np.ndarray, float]:
    """`value` as a finite float64 array, and the machine precision that it came with."""
    try:
        array = np.asarray(value)
        epsilon = np.finfo(array.dtype if array.dtype.kind == "f" else float).eps
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its dtype is {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, ragged lists, tensors on a device or with gradients
        raise ValueError(f"{name} must be an array of real numbers: {str(error).splitlines()[0]}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, it holds nan or inf")
    return array, float(epsilon)


def _positive(name: str, value: Array) -> np.ndarray:
    """`value` as a float64 array, all of it finite and above zero."""
    array, _ = _real(name, value)
    if not (array > 0).all():
        raise ValueError(f"{name} must be > 0, got {array.min():g}")
    return array


def _shaped(name: str, value: Array | None, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array of the given shape, zeros for None."""
    array = np.zeros(shape) if value is None else _real(name, value)[0]
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    return array


def _covariance(name: str, value: Array) -> np.ndarray:
    """`value`, a covariance or the spectrum of a diagonal one, as a matrix (n, n) without negative eigenvalues."""
    matrix, epsilon = _real(name, value)
    matrix = _symmetric(name, np.diag(matrix) if matrix.ndim == 1 else matrix, epsilon)
    _no_negative(name, np.linalg.eigvalsh(matrix), epsilon)
    return matrix


def _symmetric(name: str, value: np.ndarray, epsilon: float) -> np.ndarray:
    if value.ndim != 2 or value.shape[0] != value.shape[1] or not value.size:
        raise ValueError(f"{name} must be a square matrix (n, n) or a spectrum (n,), got the shape {value.shape}")
    if abs(value - value.T).max() > math.sqrt(epsilon) * abs(value).max():
        raise ValueError(f"{name} must be symmetric, it differs from its transpose by {abs(value - value.T).max():.3g}")
    return (value + value.T) / 2


def _spectrum(name: str, values: np.ndarray, epsilon: float) -> np.ndarray:
    """`values` (n,) in descending order, with what is zero up to round-off set to zero."""
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a spectrum of the shape (n,), got the shape {values.shape}")
    values = np.sort(values)[::-1]
    tolerance = _no_negative(name, values, epsilon)
    if values[0] <= 0:
        raise ValueError(f"{name} must not be zero: data without variance have nothing to encode")
    return np.where(values > tolerance, values, 0.0)


def _no_negative(name: str, values: np.ndarray, epsilon: float) -> float:
    """What counts as zero beside these eigenvalues; `ValueError` if one is below minus that."""
    tolerance = len(values) * epsilon * float(abs(values).max())
    if values.min() < -tolerance:
        raise ValueError(f"{name} must have no negative eigenvalue, got {values.min():.6g}")
    return tolerance
