"""R(D) of a source with finitely many outcomes: Blahut and Arimoto's turns, finished by Newton's method, with a certificate."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, results

_TURNS, _STEPS = 20, 60  # turns before the first step of Newton's, and how many of these may follow


@dataclass(frozen=True, eq=False)
class DiscreteLimit(results.Quantities):
    """A point of R(D) of a finite source, with a bound on how far it may be from it.

    - `rate`: I(x; y), nats.
    - `distortion`: E d(x, y), in the unit of d.
    - `gap`: the most that D/β + R of this point can be above the least one, nats.
    - `beta`: −dD/dR there.
    - `marginal`: of the reproductions, (j,); `channel`: q(y|x), (m, j).
    """

    rate: float
    distortion: float
    gap: float
    beta: float
    marginal: Float[Tensor, " j"]
    channel: Float[Tensor, "m j"]


def blahut_arimoto(
    p: Float[Tensor, " m"],
    distortion: Float[Tensor, "m j"],
    beta: float,
    tolerance: float = 1e-8,
    iterations: int = 2000,
) -> DiscreteLimit:
    """The point of R(D) of a finite source where dD/dR is −β, certified by its duality gap, in nats.

    What is minimised over the distribution w of the reproductions is convex,

        D/β + R = −Σ_x p(x) log Σ_y w(y) exp(−d(x, y)/β),

    and one of Blahut and Arimoto's turns (1972) multiplies w(y) by its growth c(y) = Σ_x p(x) exp(−d(x, y)/β)/Σ_y' w(y')
    exp(−d(x, y')/β). Nothing can be lower by more than log max_y c(y), which is zero at the optimum: this is the gap. Turns are
    slow where many y are nearly as good, and so Newton steps of an interior-point method follow a few of them; the gap is that
    of the result, whichever way it came about. All is in float64, and logarithms are taken before anything can underflow.

    - `p`: the probabilities (m,) of the x, which sum to 1 as well as float32 can; some may be 0.
    - `distortion`: d(x, y) of each x and each reproduction y, (m, j), in a unit of the caller's.
    - `beta`: > 0, in that unit per nat.
    - `tolerance`: it ends once the gap is at most this, nats.
    - `iterations`: the most turns; where they are not enough the result is what there is, and its `gap` says how good that is.

    The result's `.rate` and `.distortion` are those of a code, and so never below R(D); `.gap` is how far D/β + R may be above.

    Raises `ValueError` for what are no probabilities, a matrix of another shape, and values that are not finite.

    >>> from nbvae import limits
    >>> found = limits.blahut_arimoto([0.5, 0.5], [[0, 1], [1, 0]], beta=1.0)  # a fair coin: R = log 2 − h(D)
    >>> round(found.rate, 6), round(found.distortion, 6), found.gap <= 1e-8
    (0.110944, 0.268941, True)
    """
    p = torch.from_numpy(checks.array("p", p, (None,)))
    d = torch.from_numpy(checks.array("distortion", distortion, (len(p), None)))
    if (p < 0).any() or abs(float(p.sum()) - 1) > 1e-5:  # float32 rounds
        raise ValueError(
            f"p must be probabilities that sum to 1, got {float(p.min()):g} or more and the sum {float(p.sum()):g}"
        )
    beta, tolerance = checks.positive("beta", beta), checks.positive("tolerance", tolerance)
    iterations = checks.whole("iterations", iterations)
    p = p / p.sum()
    log_p, log_kernel = p[p > 0].log(), -d[p > 0] / beta

    def log_growth(log_w: Tensor) -> Tensor:
        log_u = (log_kernel + log_w).logsumexp(1, keepdim=True)
        return (log_kernel - log_u + log_p[:, None]).logsumexp(0)

    log_w = torch.full((d.shape[1],), -math.log(d.shape[1]), dtype=torch.float64)
    growth = log_growth(log_w)
    for turn in range(iterations):
        if float(growth.max()) <= tolerance:
            break
        log_w = log_w + growth
        if turn == _TURNS:
            log_w = _newton(log_p.exp(), log_kernel, log_w, tolerance)
        growth = log_growth(log_w)
    log_channel = (-d / beta + log_w).log_softmax(1)
    channel = log_channel.exp()
    marginal = p @ channel
    ratio = torch.where(channel > 0, log_channel - marginal.clamp(min=1e-300).log(), 0.0)
    joint = p[:, None] * channel
    return DiscreteLimit(
        rate=max(0.0, float((joint * ratio).sum())),
        distortion=float((joint * d).sum()),
        gap=max(0.0, float(growth.max())),
        beta=beta,
        marginal=marginal,
        channel=channel,
    )


def _newton(p: Tensor, log_kernel: Tensor, log_w: Tensor, tolerance: float) -> Tensor:
    """Primal-dual steps for the minimum of −Σ p log K w + Σ w over w ≥ 0, from log w to log w.

    At the minimum w sums to 1. Its multipliers z are 1 − c, and w z = μ is let go to zero.
    """
    kernel = (log_kernel - log_kernel.amax(1, keepdim=True)).exp()
    w = 0.9 * log_w.exp() + 0.1 / len(log_w)  # away from the boundary
    z, best, less = torch.ones_like(w), (math.inf, log_w), 0.1
    for _ in range(_STEPS):
        u = kernel @ w
        growth = kernel.T @ (p / u)
        gap = float((growth.max() * w.sum()).log())
        best = min(best, (gap, (w / w.sum()).log()), key=lambda each: each[0])
        if gap <= tolerance / 2:
            break
        scaled = kernel * (p.sqrt() / u)[:, None]
        hessian = scaled.T @ scaled
        hessian.diagonal().add_(z / w)
        root, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            break
        mu = less * (w * z).mean()
        dw = torch.cholesky_solve((mu / w - 1 + growth)[:, None], root)[:, 0]
        dz = mu / w - z - z / w * dw
        primal, dual = _within(w, dw), _within(z, dz)
        w, z = w + primal * dw, z + dual * dz
        less = max(0.1, (1 - min(primal, dual)) ** 2)  # after a short step to the middle first
    return best[1]


def _within(value: Tensor, change: Tensor) -> float:
    """How much of a change leaves all values above zero, at most 1."""
    falls = change < 0
    return min(1.0, 0.99 * float((-value[falls] / change[falls]).min())) if falls.any() else 1.0
