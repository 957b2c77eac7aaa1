"""log q(z) with gradients, for training: all pairs of draws and components, exact or from the weights of a minibatch.

Posteriors are diagonal Gaussians; leading dimensions are models that are trained together.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks

# Pairs (z, component) per block: half a MiB in float32.
_BLOCK = 1 << 17

MINIBATCH = ("weighted", "stratified", "hfvae")


def pairwise(
    z: Float[Tensor, "*models batch k"], mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]
) -> Float[Tensor, "*models batch n k"]:
    """log N(z_jd; mean_id, std_id²) of every z_j under every component i, for each latent d, with gradients.

    - `z`: the draws (batch, k).
    - `mean`, `std`: means and standard deviations of the n components, (n, k) each; std > 0.

    Leading dimensions are models that are trained together; one that is missing somewhere is shared. The values are
    log-densities in nats, (batch, n, k).

    From the differences, which are exact however narrow the posteriors are: expanded into a matrix product, their squares
    cancel by 10⁻⁷ mean²/std² in float32, and so do the gradients.

    >>> import torch
    >>> from nbvae import posterior
    >>> posterior.pairwise(torch.zeros(2, 3), torch.zeros(5, 3), torch.ones(5, 3)).shape
    torch.Size([2, 5, 3])
    """
    if not all(isinstance(part, Tensor) for part in (z, mean, std)):
        wrong = next(part for part in (z, mean, std) if not isinstance(part, Tensor))
        raise ValueError(f"z, mean and std must be torch tensors, got {checks.short(wrong)}")
    leading = torch.broadcast_shapes(*(part.shape[:-2] for part in (z, mean, std)))
    rows = [part.expand(*leading, *part.shape[-2:]).mT.flatten(0, -2).contiguous() for part in (z, mean, std)]
    return _Pairs.apply(*rows).unflatten(0, (*leading, z.shape[-1])).movedim(-3, -1)


class _Pairs(torch.autograd.Function):
    """log N(z_j; mean_i, std_i²) (m, batch, n) for z (m, batch), mean and std (m, n): m latents, of all models.

    In blocks that stay in the cache: as fast as the matrix product, and half the time of differences of all at once.
    """

    @staticmethod
    def forward(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        precision, constant = std.reciprocal(), -std.log() - 0.5 * math.log(2 * math.pi)
        pairs = z.new_empty(*z.shape, mean.shape[-1])
        for some in _blocks(pairs.shape):
            apart = (z[some].unsqueeze(-1) - mean[some].unsqueeze(-2)).mul_(precision[some].unsqueeze(-2))
            torch.addcmul(constant[some].unsqueeze(-2), apart, apart, value=-0.5, out=pairs[some])
        return pairs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> tuple[Any, Any]:
        """The models that are mapped over have their latents side by side."""
        n = info.batch_size
        moved = [x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(inputs, in_dims, strict=True)]
        return _Pairs.apply(*(x.flatten(0, 1) for x in moved)).unflatten(0, (n, -1)), 0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z, mean, std), gradient = ctx.saved_tensors, gradients[0]
        precision = std.reciprocal()
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            apart = (z.unsqueeze(-1) - mean.unsqueeze(-2)) * precision.unsqueeze(-2)
            by_mean = gradient * apart * precision.unsqueeze(-2)
            return -by_mean.sum(-1), by_mean.sum(-2), (by_mean * apart - gradient * precision.unsqueeze(-2)).sum(-2)
        by_z, by_mean, by_std = torch.empty_like(z), torch.empty_like(mean), torch.empty_like(std)
        for some in _blocks(gradient.shape):
            apart = (z[some].unsqueeze(-1) - mean[some].unsqueeze(-2)).mul_(precision[some].unsqueeze(-2))
            slope = gradient[some] * apart
            by_z[some] = (slope * precision[some].unsqueeze(-2)).sum(-1)
            by_mean[some] = slope.sum(-2)
            by_std[some] = slope.mul_(apart).sub_(gradient[some]).sum(-2)
        return -by_z, by_mean * precision, by_std * precision


def _blocks(shape: torch.Size) -> Iterator[slice]:
    """Slices of the first dimension of (m, batch, n)."""
    rows = max(1, _BLOCK // (shape[1] * shape[2]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def log_weights(estimator: str, batch: int, n: int, like: Tensor) -> Float[Tensor, "batch batch"]:
    """Logarithms of the weights w_ji with which a batch estimates q(z_j) ≈ Σ_i w_ji q(z_j|x_i), z_j drawn from q(z|x_j).

    - `estimator`: how the weights are made, one of those below.
    - `batch`: B, the size of the batch, a uniform draw from the reference without replacement.
    - `n`: N, the number of examples in the reference, at least B.
    - `like`: a tensor whose type and device the weights (B, B) get.

    The estimators are

    - "weighted": 1/(NB) for all (Chen et al. 2018, minibatch-weighted sampling): the weights sum to 1/N, so log q(z) comes out
      too small, by log B where the posteriors lie apart up to log N where they coincide.
    - "stratified": own 1/N, one other (N − B + 1)/(N(B − 1)), the rest 1/(B − 1) (Chen et al. 2018, minibatch-stratified
      sampling): unbiased for q(z_j) given x_j.
    - "hfvae": own 1/N, all others (N − 1)/(N(B − 1)) (Esmaeili et al. 2019): unbiased as well, and symmetric.

    The logarithm of an unbiased estimate is biased downwards, so ② comes out too high. A batch of one has its own weight only.
    Raises `ValueError` for another estimator, and for a batch that cannot come from the reference.

    >>> import torch
    >>> from nbvae import posterior
    >>> weights = posterior.log_weights("hfvae", batch=4, n=100, like=torch.zeros(())).exp()
    >>> weights.diagonal(), weights.sum(1)
    (tensor([0.0100, 0.0100, 0.0100, 0.0100]), tensor([1., 1., 1., 1.]))
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
    def forward(x: Tensor, weight: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        terms = x + weight
        peak = terms.amax(dim, keepdim=True)
        terms.sub_(peak).clamp_(min=-80.0).exp_()
        total = terms.sum(dim, keepdim=True)
        return total.log().add_(peak).squeeze(dim), terms, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        (x, weight, ctx.dim), (_, terms, total) = inputs, output
        ctx.mark_non_differentiable(terms, total)
        ctx.set_materialize_grads(False)  # or zeros as large as the terms are made for them
        ctx.save_for_backward(x, weight, terms, total)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        """Leading dimensions are left alone: the models' is put in front."""
        x, weight, dim = inputs
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        if in_dims[1] is not None:
            weight = weight.movedim(in_dims[1], 0)
            weight = weight.reshape(len(weight), *[1] * (x.dim() - weight.dim()), *weight.shape[1:])
        return _LogSum.apply(x, weight, dim), (0, 0, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradients[0] is None:
            return None, None, None
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
    """log q(z_j) = log Σ_i w_ji q(z_j|x_i) for all latents together, for groups of them and for each, with gradients.

    - `pairs`: log q(z_jd|x_i) of each pair and latent, (batch, n, k), as `pairwise` gives them.
    - `log_weight`: log w_ji, (batch, n), or (n,) where it is the same for every z; it gets no gradient.
    - `groups`: lists of latents whose densities are wanted as well.

    The weight enters once for each density, after the sum over its latents. All values are in nats.

    >>> import math, torch
    >>> from nbvae import posterior
    >>> pairs = posterior.pairwise(torch.zeros(2, 3), torch.zeros(5, 3), torch.ones(5, 3))
    >>> found = posterior.mix(pairs, torch.full((5,), -math.log(5)), groups=[[0, 1], [2]])
    >>> found.joint.shape, found.groups.shape, found.latents.shape
    (torch.Size([2]), torch.Size([2, 2]), torch.Size([2, 3]))
    """
    joint = _LogSum.apply(pairs.sum(-1), log_weight, -1)[0]
    latents = _LogSum.apply(pairs, log_weight.unsqueeze(-1), -2)[0]
    parts = [_LogSum.apply(pairs[..., list(group)].sum(-1), log_weight, -1)[0] for group in groups]
    return LogDensities(joint, torch.stack(parts, -1) if parts else joint.unsqueeze(-1)[..., :0], latents)


def partition(groups: Sequence[Sequence[int]], latent_dim: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Return `groups` as tuples if each of the latents 0 … k − 1 is in exactly one of them.

    `groups` are lists of latents, and `latent_dim` is k; None allows any. Raises `ValueError` for groups that are no partition.

    >>> from nbvae import posterior
    >>> posterior.partition([[2, 0], [1]], latent_dim=3)
    ((2, 0), (1,))
    """
    groups = groups.tolist() if isinstance(groups, Tensor) else groups
    try:
        parts = tuple(tuple(checks.whole("latent", latent, minimum=0) for latent in group) for group in groups)
    except (TypeError, ValueError):
        parts = ()
    members = sorted(latent for part in parts for latent in part)
    if not parts or not all(parts) or members != list(range(latent_dim or len(members))):
        latents = "the latents" if latent_dim is None else f"the latents 0 to {latent_dim - 1}"
        raise ValueError(f"groups must be lists with each of {latents} in exactly one of them, got {checks.short(groups)}")
    return parts
