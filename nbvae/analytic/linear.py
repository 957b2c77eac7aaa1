"""The linear VAE on Gaussian data: its optima, and rate, distortion, evidence and the four terms of given maps."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from nbvae import checks
from nbvae.analytic._checked import (
    Array,
    Numbers,
    covariance,
    fill,
    like,
    positive,
    real,
    shaped,
    spectrum,
    sums_after,
    symmetric,
)


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
    sigma2: float  # σ², given or learned
    beta: float  # as given
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
        values, epsilon = real("cov", cov)
        if values.ndim == 1:
            order = np.argsort(-values, kind="stable")
            vectors, values = np.eye(len(values))[:, order], values[order]
        else:
            values, vectors = np.linalg.eigh(symmetric("cov", values, epsilon))
            values, vectors = values[::-1], vectors[:, ::-1]
        self.eigenvalues: Float[np.ndarray, " n"] = spectrum("cov", values, epsilon)
        self.eigenvectors: Float[np.ndarray, "n n"] = vectors
        self.rank = int(np.count_nonzero(self.eigenvalues))

    def at_water_level(self, water_level: Numbers) -> tuple[Numbers, Numbers]:
        """(rate, mse) at the `water_level` s = βσ² > 0, a number or an array: the frontier that σ and β move along.

        dMSE/dR = −2s on it, and dD/dR = −β where β is trained with σ fixed, or with σ learned.
        """
        rate, mse = fill(self.eigenvalues[: self.latent_dim], positive("water_level", water_level))
        return rate, mse + float(self.eigenvalues[self.latent_dim :].sum())

    def learned_beta(self, water_level: Numbers) -> Numbers:
        """The β at which a learned σ puts the optimum at the `water_level` s > 0, a number or an array: β = n s/MSE(s).

        It never falls with s: where it stands still, nothing is left over, T_a = 0, and every level of the stretch is optimal
        for one and the same β.
        """
        level = positive("water_level", water_level)
        return like(len(self.eigenvalues) * level / self.at_water_level(level)[1])

    def collapse_beta(self, sigma2: float | None = None) -> float:
        """β from which on no latent is active: λ_1/σ² for a fixed `sigma2`, λ_1/mean(λ) for a learned one, None."""
        noise = self.eigenvalues.mean() if sigma2 is None else checks.positive("sigma2", sigma2)
        return float(self.eigenvalues[0] / noise)

    def solve(self, beta: float = 1.0, sigma2: float | None = None) -> Solution:
        """Minimise D + βR, of a `beta` > 0, over encoder and decoder for a fixed `sigma2`, and over σ² too if it is None.

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
        left_over = sums_after(self.eigenvalues)
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
    sigma = covariance("cov", cov)
    n = len(sigma)
    v = positive("variance", variance)
    k = v.size
    v = shaped("variance", v, (k,))
    big_v, w = shaped("encoder", encoder, (k, n)), shaped("decoder", decoder, (n, k))
    m, b = (shaped(name, x, (n,)) for name, x in (("mean", mean), ("decoder_bias", decoder_bias)))
    centre = big_v @ m + shaped("encoder_bias", encoder_bias, (k,))  # E z
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
    dimension_kl_per_latent: Float[np.ndarray, " k"]  # KL(q(z_d) ‖ p(z_d))


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
    sigma = covariance("cov", cov)
    n = len(sigma)
    v = positive("variance", variance)
    k = v.size
    v = shaped("variance", v, (k,))
    big_v = shaped("encoder", encoder, (k, n))
    centre = big_v @ shaped("mean", mean, (n,)) + shaped("encoder_bias", encoder_bias, (k,))
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
    rows, w = real("x", x)[0], real("decoder", decoder)[0]
    if rows.ndim != 2 or w.ndim != 2 or rows.shape[1] != len(w):
        raise ValueError(f"x must be (batch, n) and decoder (n, k), got {rows.shape} and {w.shape}")
    s2 = checks.positive("sigma2", sigma2)
    n, k = w.shape
    centred = rows - shaped("decoder_bias", decoder_bias, (n,))
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
    return like(size / 2 * (np.log(2 * np.pi * positive("mse", mse) / size) + 1))
