"""The aggregated posterior q(z) = (1/N) Σ_i q(z|x_i): its log-density, exact over a whole data set or estimated from a batch.

Posteriors are diagonal Gaussians. `log_density` and `leave_one_out` are for measuring: no gradients, bounded memory. What
training needs, `pairwise` and the weights of the minibatch estimators, keeps gradients and takes leading model dimensions.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributions

from nbvae import checks
from nbvae.stacking import double

MINIBATCH = ("weighted", "stratified", "hfvae")

# Pairs (z, component) per block. The block is written and read several times, so it should stay in the cache: 1 MiB in float32.
_BLOCK = 1 << 18
# Pixel values that are encoded at once: 64 MiB in float32.
_CHUNK = 1 << 24
# The largest rounding error of a float32 result that is accepted, in nats, before it is computed in float64.
_TOLERANCE = 1e-3


def gaussian(posterior: distributions.Distribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (..., k) of a diagonal Gaussian over the last dimension, or `ValueError`."""
    base = posterior.base_dist if isinstance(posterior, distributions.Independent) else None
    if not isinstance(base, distributions.Normal) or posterior.event_shape != base.batch_shape[-1:]:
        raise ValueError("needs a diagonal Gaussian: Independent(Normal(mean, std), 1)")
    return base.mean, base.stddev


@torch.no_grad()
def codes(model: Any, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Means and standard deviations of the posteriors of all of x (N, *shape), encoded in parts."""
    like = model.prior().mean
    parts = [gaussian(model.posterior(part.to(like))) for part in x.split(max(1, _CHUNK // x[0].numel()))]
    mean, std = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return mean, std


def pairwise(
    z: Float[Tensor, "*models batch k"], mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]
) -> Float[Tensor, "*models batch n k"]:
    """log N(z_jd; mean_id, std_id²) of every z_j under every component i, for each latent d, with gradients.

    For each latent a matrix product of (z², z, 1) with the coefficients of the expanded square, a third of the time of
    broadcast differences. In float32 the rounding error is of the order of 10⁻⁷ mean²/std².
    """
    centre = mean.detach().mean(-2, keepdim=True)  # cancellation grows with the distance from the origin
    z, mean = z - centre, mean - centre
    precision = std**-2
    constant = -0.5 * precision * mean.square() - std.log() - 0.5 * math.log(2 * math.pi)
    features = torch.stack([z.square(), z, torch.ones_like(z)], -1).transpose(-2, -3)
    factors = torch.stack([-0.5 * precision, precision * mean, constant], -1).transpose(-2, -3)
    return (features @ factors.mT).movedim(-3, -1)


def log_weights(estimator: str, batch: int, n: int, like: Tensor) -> Float[Tensor, "batch batch"]:
    """Logarithms of the weights w_ji with which a batch estimates q(z_j) ≈ Σ_i w_ji q(z_j|x_i), z_j drawn from q(z|x_j).

    The batch is a uniform draw of B of the N = `n` examples of the reference, without replacement.

    - "weighted": 1/(NB) for all (Chen et al. 2018, minibatch-weighted sampling): the weights sum to 1/N, so log q(z) comes out
      too small, by log B where the posteriors lie apart up to log N where they coincide.
    - "stratified": own 1/N, one other (N − B + 1)/(N(B − 1)), the rest 1/(B − 1) (Chen et al. 2018, minibatch-stratified
      sampling): unbiased for q(z_j) given x_j.
    - "hfvae": own 1/N, all others (N − 1)/(N(B − 1)) (Esmaeili et al. 2019): unbiased as well, and symmetric.

    The logarithm of an unbiased estimate is biased downwards, so ② comes out too high. A batch of one has its own weight only.
    """
    checks.choice("estimator", estimator, MINIBATCH)
    if not 1 <= batch <= n:
        raise ValueError(f"a batch of {batch} cannot come from a reference of {n} examples")
    if estimator == "weighted":
        return torch.full((batch, batch), -math.log(n * batch), dtype=like.dtype, device=like.device)
    others = max(1, batch - 1)
    if estimator == "hfvae":
        weights = torch.full((batch, batch), (n - 1) / (n * others), dtype=torch.float64)
    else:
        weights = torch.full((batch, batch), 1 / others, dtype=torch.float64)
        row = torch.arange(batch)
        weights[row, (row + 1) % batch] = (n - others) / (n * others)
    weights.fill_diagonal_(1 / n)
    return weights.log().to(like)


class LogDensities(NamedTuple):
    """log q(z) (*models, batch), log q(z_g) for each group of latents (..., groups) and log q(z_d) for each latent (..., k)."""

    joint: Float[Tensor, "*models batch"]
    groups: Float[Tensor, "*models batch groups"]
    latents: Float[Tensor, "*models batch k"]


class _LogSum(torch.autograd.Function):
    """log Σ exp(x + weight) over a dimension, without a gradient for the weight.

    As `logsumexp`, with one exponential in place of two (the backward pass keeps the first), in one buffer, and terms
    e⁻⁸⁰ of the largest cut off there: exponentials of far negative numbers are many times slower than others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dim: int) -> Tensor:
        terms = x + weight
        peak = terms.amax(dim, keepdim=True)
        terms.sub_(peak).clamp_(min=-80.0).exp_()
        total = terms.sum(dim, keepdim=True)
        ctx.save_for_backward(x, weight, terms, total)
        ctx.dim = dim
        return total.log().add_(peak).squeeze(dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, terms, total = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(ctx.dim)
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself: what was kept has no graph
            return (x + weight).softmax(ctx.dim) * gradient, None, None
        return terms * (gradient / total), None, None


def mix(
    pairs: Float[Tensor, "*models batch n k"],
    log_weight: Float[Tensor, "*batch n"],
    groups: Sequence[Sequence[int]] = (),
) -> LogDensities:
    """log Σ_i w_ji q(z_j|x_i), for all latents, groups of them and each: the weight enters once, after the sum over latents."""
    joint = _LogSum.apply(pairs.sum(-1), log_weight, -1)
    latents = _LogSum.apply(pairs, log_weight.unsqueeze(-1), -2)
    parts = [_LogSum.apply(pairs[..., list(group)].sum(-1), log_weight, -1) for group in groups]
    return LogDensities(joint, torch.stack(parts, -1) if parts else joint.unsqueeze(-1)[..., :0], latents)


def partition(groups: Sequence[Sequence[int]], latent_dim: int | None = None) -> tuple[tuple[int, ...], ...]:
    """`groups` as tuples, if each of the latents 0 … k−1 is in exactly one of them; `ValueError` otherwise. k None: any k."""
    groups = groups.tolist() if isinstance(groups, Tensor) else groups
    try:
        parts = tuple(tuple(checks.whole("latent", latent, minimum=0) for latent in group) for group in groups)
    except (TypeError, ValueError):
        parts = ()
    members = sorted(latent for part in parts for latent in part)
    if not parts or not all(parts) or members != list(range(latent_dim or len(members))):
        latents = "the latents" if latent_dim is None else f"the latents 0 to {latent_dim - 1}"
        raise ValueError(f"groups must be lists with each of {latents} in exactly one of them, got {groups!r}")
    return parts


def check_reference(reference: Sequence | Tensor) -> None:
    """Raise `ValueError` for a reference of fewer than two examples, whose q(z) is the posterior of one."""
    if len(reference) < 2:
        raise ValueError(f"the aggregated posterior needs a reference of at least two examples, got {len(reference)}")


@torch.no_grad()
def log_density(z: Float[Tensor, "m k"], mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"]) -> Float[Tensor, " m"]:
    """log (1/N) Σ_i N(z; mean_i, diag std_i²) for each row of z (M, k): float64, nats, within 1e-3.

    The squares are expanded, so that all pairs are one matrix product, in blocks of fixed size: memory does not grow with MN.
    Expanding cancels where posteriors are narrow against their distance from the centre; float64 is used where float32
    would not hold the tolerance, and holds it until that ratio is a million.
    """
    return _log_sum(z, mean, std, None)[0] - math.log(len(mean))


@torch.no_grad()
def mmd(mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"]) -> float:
    """Squared maximum mean discrepancy of q(z) and N(0, I), kernel exp(−‖a − b‖²/k²): exact, without draws, >= 0.

    For independent a and b, Gaussian with the difference δ of their means and the sum v of their variances, the kernel's
    expectation is Π_d (1 + 2v_d/k²)^(−1/2) exp(−δ_d²/(k² + 2v_d)), averaged here over all pairs of components.
    """
    mean, variance = double(mean), double(std).square()
    n, k = mean.shape
    scale = float(k**2)

    def kernel(delta: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
        spreads = [1 + 2 / scale * each for each in v]
        exponent = functools.reduce(torch.add, (each.square() / spread for each, spread in zip(delta, spreads, strict=True)))
        return (exponent / -scale).exp() * functools.reduce(torch.mul, spreads).rsqrt()

    # Latent by latent, (rows, n) at a time; each pair once, for the kernel is symmetric.
    mean, variance = mean.T.contiguous(), variance.T.contiguous()
    rows = max(1, _BLOCK // 8 // n)
    within = torch.zeros((), dtype=torch.float64, device=mean.device)
    for top in range(0, n, rows):
        some, others = slice(top, top + rows), slice(top, None)
        block = kernel([m[some].unsqueeze(1) - m[others] for m in mean], [v[some].unsqueeze(1) + v[others] for v in variance])
        within += 2 * block.sum() - block[:, : len(block)].sum()
    across = kernel(list(mean), list(1 + variance)).mean().item()
    return within.item() / n**2 + (1 + 4 / scale) ** (-k / 2) - 2 * across


def sample_mmd(
    a: Float[Tensor, "*models n k"], b: Float[Tensor, "*models m k"], unbiased: bool = False
) -> Float[Tensor, "*models"]:
    """Squared maximum mean discrepancy of two samples with the kernel exp(−‖a − b‖²/k²) (Gretton et al. 2012, eqs. 3 and 5).

    With all pairs kept it is biased upwards, by about 2(1 − E kernel)/n, and >= 0; `unbiased` leaves out the pairs of a point
    with itself and may be negative.
    """
    # Not by matrix products: their rounding is felt in the distance of near points.
    apart = [torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist") for u, v in ((a, a), (b, b), (a, b))]
    within_a, within_b, across = ((-distance.square() / a.shape[-1] ** 2).exp().mean((-2, -1)) for distance in apart)
    if unbiased:
        n, m = a.shape[-2], b.shape[-2]
        within_a, within_b = (n * within_a - 1) / (n - 1), (m * within_b - 1) / (m - 1)
    return within_a + within_b - 2 * across


@torch.no_grad()
def leave_one_out(
    z: Float[Tensor, "m k"], mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"], own: Int64[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """`log_density` (M,) and the same without component `own[j]` for z_j, (1/(N−1)) Σ_{i≠own} in place of (1/N) Σ_i."""
    check_reference(mean)
    n = len(mean)
    others, alone = _log_sum(z, mean, std, own)
    return torch.logaddexp(others, alone) - math.log(n), others - math.log(n - 1)


def _log_sum(z: Tensor, mean: Tensor, std: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """log Σ_i N(z_j; i) over all components but `own[j]`, and log N(z_j; own[j]), both (M,) in float64."""
    mean, std, z = double(mean), double(std), double(z)
    centre = mean.mean(0)
    mean, z = mean - centre, z - centre  # cancellation grows with the distance from the origin
    constant = -0.5 * math.log(2 * math.pi) * mean.shape[1] - std.log().sum(1)
    alone = torch.empty(len(z), dtype=torch.float64, device=z.device)
    if own is not None:
        alone = constant[own] - 0.5 * ((z - mean[own]) / std[own]).square().sum(1)
    # Components so narrow that the products below round away their densities even in float64.
    narrow = 10.0 * torch.finfo(torch.float64).eps * (mean / std).square().sum(1) > _TOLERANCE
    if not narrow.any():
        return _products(z, mean, std, constant, own), alone
    total = torch.full_like(alone, -math.inf)
    for chosen, log_sum in ((narrow, _differences), (~narrow, _products)):
        if chosen.any():
            place = None if own is None else torch.where(chosen[own], chosen.cumsum(0)[own] - 1, -1)
            total = torch.logaddexp(total, log_sum(z, mean[chosen], std[chosen], constant[chosen], place))
    return total, alone


def _differences(z: Tensor, mean: Tensor, std: Tensor, constant: Tensor, own: Tensor | None) -> Float[Tensor, " m"]:
    """The first of `_log_sum` from z − μ of each pair: slow, and exact whatever σ is. own = −1 leaves nothing out."""
    rows, result = max(1, _BLOCK // mean.numel()), []
    for top in range(0, len(z), rows):
        terms = constant - 0.5 * ((z[top : top + rows, None] - mean) / std).square().sum(-1)
        if own is not None:
            here = own[top : top + rows]
            inside = (here >= 0).nonzero().flatten()
            terms[inside, here[inside]] = -math.inf
        result.append(terms.logsumexp(1))
    return torch.cat(result)


def _products(z: Tensor, mean: Tensor, std: Tensor, constant: Tensor, own: Tensor | None) -> Float[Tensor, " m"]:
    """The first of `_log_sum` from matrix products, in float32 where its rounding does no harm."""
    # Log-density = z² · a + z · b + c. In float32 its rounding error was never above 4.3 machine precisions times
    # Σ_d (|z_d| + |μ_d|)²/2σ_d², which for the components that matter to z_j is at most (2√P + √Q_j)²/2, where
    # P = max_i Σ_d μ²/σ² and Q_j bounds their Σ_d (z − μ)²/σ² (Minkowski).
    factors = torch.cat([-0.5 / std**2, mean / std**2], 1)
    bias = constant - 0.5 * (mean / std).square().sum(1)
    features = torch.cat([z**2, z], 1)
    spread = (mean / std).square().sum(1).max()
    unit = 5.0 * torch.finfo(torch.float32).eps
    if unit * 2 * spread > _TOLERANCE:
        return _blocks(features, factors, bias, own)
    total = _blocks(features.float(), factors.float(), bias.float(), own)
    # A term below the largest by log N + 10 adds less than e^−10 of it.
    deepest = (2 * (constant.max() - total + math.log(len(mean)) + 10)).clamp(min=0).nan_to_num(nan=math.inf, posinf=math.inf)
    doubtful = (unit * 0.5 * (2 * spread.sqrt() + deepest.sqrt()) ** 2 > _TOLERANCE).nonzero().flatten()
    if len(doubtful):
        total[doubtful] = _blocks(features[doubtful], factors, bias, None if own is None else own[doubtful])
    return total


def _blocks(features: Tensor, factors: Tensor, bias: Tensor, own: Tensor | None) -> Tensor:
    """log Σ_i exp(features · factors_i + bias_i) without i = own, in blocks, in float64.

    In powers of two, and terms below 2⁻¹²⁰ of the largest cut off there: exponentials of far negative numbers are many
    times slower than others.
    """
    m, n = len(features), len(factors)
    factors, bias = factors / math.log(2), bias / math.log(2)
    rows = min(m, 512)
    columns = max(1, min(n, _BLOCK // rows))
    factors = factors.T.contiguous()
    buffer = torch.empty(rows * columns, dtype=features.dtype, device=features.device)
    exponents = torch.empty(rows * columns, dtype=torch.float32, device=features.device)
    result = torch.empty(m, dtype=torch.float64, device=features.device)
    for top in range(0, m, rows):
        some = features[top : top + rows]
        height = len(some)
        peak = torch.full((height,), -math.inf, dtype=features.dtype, device=features.device)
        total = torch.zeros(height, dtype=torch.float64, device=features.device)
        shift = peak
        for left in range(0, n, columns):
            part = factors[:, left : left + columns]
            width = part.shape[1]
            block = buffer[: height * width].view(height, width)
            torch.addmm(bias[left : left + columns], some, part, out=block)
            if own is not None:
                here = own[top : top + rows] - left
                inside = ((here >= 0) & (here < width)).nonzero().flatten()
                block[inside, here[inside]] = -math.inf
            higher = torch.maximum(peak, block.amax(1))
            shift = higher.nan_to_num(neginf=0.0)  # all terms so far are zero
            block.sub_(shift.unsqueeze(1)).clamp_(min=-120.0)
            terms = block if block.dtype == torch.float32 else exponents[: height * width].view(height, width).copy_(block)
            total = total * (peak - shift).double().exp2() + terms.exp2_().sum(1)
            peak = higher
        result[top : top + rows] = (total.log2() + shift.double()) * math.log(2)
    return result
