"""Log-densities of Gaussian mixtures and their gradients, pair by pair in the cache: what training on exact terms costs."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Pairs (z, component) of a tile, at most. Three tiles are at work at a time, 1.5 MiB in float32. On another device a tile is
# as large as its memory allows: there, to begin an operation takes longer than to write and read so little.
_TILE, _ELSEWHERE = 1 << 17, 1 << 24

# Terms are nothing from e⁻⁵⁰ of the largest on, less than float64 holds: the exponentials of far negative numbers, of −∞ too,
# are many times slower than others, and so is all that is done with such small ones. Nothing, and not that little: in a
# training that has gone astray a far component's slope is larger than it is small.
_LOWEST = -50.0
_NOTHING = 1.001 * math.exp(_LOWEST)


class Mixture(torch.autograd.Function):
    """log Σ_i w_ji Π_d N(z_jd; mean_id, std_id²) over the latents d of some parts, and over each latent alone.

    - z (m, k, batch), mean and std (m, k, n) are the latents of m models.
    - log w (m, batch, n), or 1 in place of each; it gets no gradient.
    - The parts are tuples of latents; `alone` says whether each latent's density is wanted.

    The results are the log-densities of the parts (m, parts, batch) and of the latents (m, k, batch), and for the backward pass
    the components' shares of each part's density (m, parts, batch, n).

    All pairs at once would be written to memory and read again some twenty times.
    """

    @staticmethod
    def forward(
        z: Tensor, mean: Tensor, std: Tensor, weight: Tensor, parts: tuple[tuple[int, ...], ...], alone: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        (m, k, batch), n = z.shape, mean.shape[-1]
        uniform = weight.shape[1:] == (1, 1)
        every = weight.expand(m, batch, n)
        sums, singles = z.new_empty(m, len(parts), batch), z.new_empty(m, k if alone else 0, batch)
        shares = z.new_zeros(m, len(parts), batch, n)
        tiles = _Tiles(z, mean, std)
        for models, rows in tiles.outer():
            share, w = shares[models, :, rows], None if uniform else every[models, rows].unsqueeze(1)
            for latents, _, pairs in tiles.inner(models, rows):
                for part, d in _members(parts, latents):
                    share[:, part] += pairs[:, d]
                if alone:
                    total, peak = _exponentials(pairs, w)
                    singles[models, latents, rows] = total.log_().add_(peak).squeeze(-1)
            total, peak = _exponentials(share, w)
            share /= total
            sums[models, :, rows] = total.log_().add_(peak).squeeze(-1)
        return (sums + weight, singles + weight, shares) if uniform else (sums, singles, shares)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.parts, ctx.alone = inputs
        _, singles, shares = output
        ctx.mark_non_differentiable(shares)
        ctx.set_materialize_grads(False)  # or zeros as large as the shares are made for them
        ctx.save_for_backward(*tensors, singles.detach(), shares)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        """The models that are mapped over stand beside those that are there."""
        count, (*tensors, parts, alone) = info.batch_size, inputs
        tensors = [
            x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, in_dims, strict=False)
        ]
        m = max(x.shape[1] for x in tensors)
        found = Mixture.apply(*(x.expand(-1, m, -1, -1).flatten(0, 1) for x in tensors), parts, alone)
        return tuple(x.unflatten(0, (count, m)) for x in found), (0, 0, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, mean, std, weight, singles, shares = ctx.saved_tensors
        by_sums, by_singles, _ = gradients
        if not ctx.alone:
            by_singles = None
        if by_sums is None and by_singles is None:
            return (None,) * 6
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            return *_differentiable(z, mean, std, weight, ctx.parts, by_sums, by_singles), None, None, None
        by_z, by_mean, by_std = torch.zeros_like(z), torch.zeros_like(mean), torch.zeros_like(std)
        every = None if weight.shape[1:] == (1, 1) else weight.expand(len(z), z.shape[2], mean.shape[2])
        if by_singles is not None and every is None:
            singles = singles - weight
        tiles = _Tiles(z, mean, std)
        for models, rows in tiles.outer():
            share = None if by_sums is None else shares[models, :, rows] * by_sums[models, :, rows].unsqueeze(-1)
            for latents, apart, slope in tiles.inner(models, rows):
                if by_singles is None:
                    slope.zero_()
                else:
                    if every is not None:
                        slope.add_(every[models, rows].unsqueeze(1))
                    _exp(slope.sub_(singles[models, latents, rows].unsqueeze(-1)))
                    slope.mul_(by_singles[models, latents, rows].unsqueeze(-1))
                if share is not None:
                    for part, d in _members(ctx.parts, latents):
                        slope[:, d] += share[:, part]
                here = models, latents
                by_std[here] -= slope.sum(-2)
                slope.mul_(apart)
                by_mean[here] += slope.sum(-2)
                by_z[models, latents, rows] = torch.matmul(slope, tiles.precision[here].unsqueeze(-1)).squeeze(-1)
                by_std[here] += slope.mul_(apart).sum(-2)
        return -by_z, by_mean * tiles.precision, by_std * tiles.precision, None, None, None


class _Tiles:
    """The pairs of z (m, k, batch) with the components (m, k, n) in parts of one size, in memory that is used again.

    A tile has some rows of the batch; then as many latents as there is room for; and, with all of those, models. So what is
    summed over does not depend on how many models there are.
    """

    def __init__(self, z: Tensor, mean: Tensor, std: Tensor):
        (self.m, self.k, self.batch), self.n = z.shape, mean.shape[-1]
        self.precision = std.reciprocal()
        constant = -std.log() - 0.5 * math.log(2 * math.pi)
        self.columns, self.components = z.unsqueeze(-1), [x.unsqueeze(-2) for x in (mean, self.precision, constant)]
        tile = _TILE if z.device.type == "cpu" else _ELSEWHERE
        self.rows = -(-self.batch // -(-self.batch * self.n // tile))
        self.latents = min(self.k, max(1, tile // (self.rows * self.n)))
        size = self.latents * self.rows * self.n
        self.models = min(self.m, max(1, tile // size)) if self.latents == self.k else 1
        self.buffers = [z.new_empty(self.models * size) for _ in range(2)]

    def outer(self) -> Iterator[tuple[slice, slice]]:
        """Slices of models and of rows."""
        for top in range(0, self.m, self.models):
            for left in range(0, self.batch, self.rows):
                yield slice(top, top + self.models), slice(left, left + self.rows)

    def inner(self, models: slice, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of latents, each with (z − mean)/std and log N(z; mean, std²) of the tile (models, latents, rows, n)."""
        parts = [x[models].split(self.latents, 1) for x in (self.columns[:, :, rows], *self.components)]
        low = 0
        for z, mean, precision, constant in zip(*parts, strict=True):
            shape = *z.shape[:-1], self.n
            apart, pairs = (buffer[: math.prod(shape)].view(shape) for buffer in self.buffers)
            torch.sub(z, mean, out=apart).mul_(precision)
            torch.addcmul(constant, apart, apart, value=-0.5, out=pairs)
            yield slice(low, low + z.shape[1]), apart, pairs
            low += z.shape[1]


def _members(parts: tuple[tuple[int, ...], ...], latents: slice) -> Iterator[tuple[int, int]]:
    """The parts and those of their latents, counted from the first, that are in a slice."""
    return ((part, d - latents.start) for part, each in enumerate(parts) for d in each if latents.start <= d < latents.stop)


def _exponentials(terms: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turn terms (…, n) into e^(terms + weight − peak), in place. The sum of these and the peak, the largest of each row."""
    if weight is not None:
        terms += weight
    peak = terms.amax(-1, keepdim=True)
    return _exp(terms.sub_(peak)).sum(-1, keepdim=True), peak


def _exp(terms: Tensor) -> Tensor:
    """The exponentials of terms that are not above 0, in place."""
    return torch.threshold_(terms.clamp_(min=_LOWEST).exp_(), _NOTHING, 0.0)


def _differentiable(
    z: Tensor, mean: Tensor, std: Tensor, weight: Tensor, parts: Any, by_sums: Tensor | None, by_singles: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, all pairs at once, by operations that have gradients."""
    precision = std.reciprocal().unsqueeze(-2)
    apart = (z.unsqueeze(-1) - mean.unsqueeze(-2)) * precision
    pairs = -0.5 * apart.square() + precision.log() - 0.5 * math.log(2 * math.pi)
    slopes = [torch.zeros_like(pair) for pair in pairs.unbind(1)]
    if by_singles is not None:
        shares = (pairs + weight.unsqueeze(1)).softmax(-1) * by_singles.unsqueeze(-1)
        slopes = list(shares.unbind(1))
    if by_sums is not None:
        for members, gradient in zip(parts, by_sums.unbind(1), strict=True):
            share = (pairs[:, list(members)].sum(1) + weight).softmax(-1) * gradient.unsqueeze(-1)
            for d in members:
                slopes[d] = slopes[d] + share
    slope = torch.stack(slopes, 1)
    by_mean = slope * apart * precision
    return -by_mean.sum(-1), by_mean.sum(-2), (by_mean * apart - slope * precision).sum(-2)
