"""q(z) = (1/N) Σ_i q(z|x_i) over a whole data set, exact: its log-density for measuring, no gradients, bounded memory.

Posteriors are diagonal Gaussians.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributions

from nbvae import checks
from nbvae._measuring import check_input, measured
from nbvae._tensors import double, parts

# Pairs (z, component) per block. The block is written and read several times, so it should stay in the cache: 1 MiB in float32.
_BLOCK = 1 << 18

# The largest rounding error of a float32 result that is accepted, in nats, before it is computed in float64.
_TOLERANCE = 1e-3


def mean_and_std(posterior: distributions.Distribution) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation (..., k) of a `posterior` that is a diagonal Gaussian over the last dimension.

    Raises `ValueError` for any other distribution.

    >>> import torch
    >>> from nbvae import models, posterior
    >>> mean, std = posterior.mean_and_std(models.VAE((4,), 3).posterior(torch.rand(10, 4)))
    >>> mean.shape, std.shape
    (torch.Size([10, 3]), torch.Size([10, 3]))
    """
    base = posterior.base_dist if isinstance(posterior, distributions.Independent) else None
    if not isinstance(base, distributions.Normal) or posterior.event_shape != base.batch_shape[-1:]:
        raise ValueError("needs a diagonal Gaussian: Independent(Normal(mean, std), 1)")
    return base.mean, base.stddev


@measured
def encode(model: Any, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The means and standard deviations (N, k) of the posteriors of all of x (N, *shape), encoded in parts.

    The `model` is in evaluation mode meanwhile, and left as it was. Raises `ValueError` unless its posterior is a diagonal
    Gaussian.

    >>> from nbvae import data, models, posterior
    >>> digits = data.load("digits")
    >>> mean, std = posterior.encode(models.VAE(digits.shape, 3, hidden=(8,)), digits.test)
    >>> mean.shape, std.shape
    (torch.Size([397, 3]), torch.Size([397, 3]))
    """
    check_input(model, x)
    codes = [mean_and_std(model.posterior(part)) for part in parts(x, model.prior().mean)]
    mean, std = (torch.cat(columns) for columns in zip(*codes, strict=True))
    return mean, std


def check_reference(reference: Sequence | Tensor) -> None:
    """Raise `ValueError` for a `reference` of fewer than two examples, whose q(z) is the posterior of one.

    >>> from nbvae import posterior
    >>> posterior.check_reference([0.5])
    Traceback (most recent call last):
    ValueError: the aggregated posterior needs a reference of at least two examples, got 1
    """
    if len(reference) < 2:
        raise ValueError(f"the aggregated posterior needs a reference of at least two examples, got {len(reference)}")


@torch.no_grad()
def log_density(z: Float[Tensor, "m k"], mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"]) -> Float[Tensor, " m"]:
    """log q(z) = log (1/N) Σ_i N(z; mean_i, diag std_i²) of each z, without gradients.

    - `z`: the points (M, k).
    - `mean`, `std`: means and standard deviations of the N components, (N, k) each, as `encode` gives them.

    The values (M,) are in nats, in float64, and right within 1e-3. The squares are expanded, so that all pairs are one matrix
    product, in blocks of fixed size: memory does not grow with MN. Expanding cancels where posteriors are narrow against their
    distance from the centre: float64 is used where float32 would not hold the tolerance, and differences where float64 would
    not.

    >>> import torch
    >>> from nbvae import posterior
    >>> posterior.log_density(torch.zeros(1, 2), torch.zeros(100, 2), torch.ones(100, 2))  # −log 2π
    tensor([-1.8379], dtype=torch.float64)
    """
    return _log_sum(z, mean, std, None)[0] - math.log(len(mean))


@torch.no_grad()
def leave_one_out(
    z: Float[Tensor, "m k"], mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"], own: Int64[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """`log_density` (M,), and the same without one component of each z: (1/(N − 1)) Σ_{i≠own} in place of (1/N) Σ_i.

    - `z`: the points (M, k).
    - `mean`, `std`: means and standard deviations of the N components, (N, k) each; N >= 2.
    - `own`: for each z the component that is left out, (M,), 0 to N − 1: that of the example that z was drawn for.

    >>> import torch
    >>> from nbvae import posterior
    >>> mean = torch.tensor([[0.0], [100.0], [0.0]])
    >>> every, others = posterior.leave_one_out(mean[:1], mean, torch.ones(3, 1), torch.tensor([0]))
    >>> (others - every).exp()  # one of two near components in three, against one in two
    tensor([0.7500], dtype=torch.float64)
    """
    check_reference(mean)
    n = len(mean)
    others, alone = _log_sum(z, mean, std, own)
    return torch.logaddexp(others, alone) - math.log(n), others - math.log(n - 1)


def _log_sum(z: Tensor, mean: Tensor, std: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """log Σ_i N(z_j; i) over all components but `own[j]`, and log N(z_j; own[j]), both (M,) in float64."""
    for name, value in (("z", z), ("mean", mean), ("std", std)):
        checks.tensor(name, value, 2)
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
    # A GPU may have been told to round its float32 products to TensorFloat-32, which has three digits of their seven.
    if z.is_cuda or unit * 2 * spread > _TOLERANCE:
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
