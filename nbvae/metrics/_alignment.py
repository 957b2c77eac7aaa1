"""How well the latents of two models agree."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nbvae import checks, results


class Alignment(NamedTuple):
    """How well latents of two models agree, 0 to 1; `channels` (k,) and `partner` (k,) are nan and −1 where a latent is
    inactive.

    All are means over the `active` latents: the number of those that are active in the model that has fewer.

    - `by_channel`: |correlation| of latent i with latent i, zero where only one of them is active;
    - `matched`: the same after the permutation of latents that makes it largest (signs are free);
    - `cca`: the mean canonical correlation, up to any invertible linear map;
    - `cka`: linear centred kernel alignment, up to rotation and one scale (Kornblith et al. 2019).
    """

    by_channel: float
    matched: float
    cca: float
    cka: float
    active: int
    channels: Float[Tensor, " k"]
    partner: Int64[Tensor, " k"]

    estimates, estimate, to_frame = results.Quantities.estimates, results.Quantities.estimate, results.Quantities.to_frame


def alignment(means_a: Float[Tensor, "n k"], means_b: Float[Tensor, "n k"], threshold: float = 0.01) -> Alignment:
    """How well the latents of two models agree.

    - `means_a`, `means_b`: the posterior means (N, k) of the same N examples, at least k + 2, tensors or arrays.
    - `threshold`: the variance of its mean that an active latent exceeds, >= 0 (Burda et al. 2016).

    `Alignment` has four measures of agreement, from 0 to 1; all are nan if a model has no active latent. Raises `ValueError`
    for means of other shapes and for means that are not finite.

    >>> import torch
    >>> from nbvae import metrics
    >>> means = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> found = metrics.alignment(means, -means.flip(1))  # the latents swapped, and their signs
    >>> round(found.matched, 6), found.by_channel < 0.5, found.partner.tolist()
    (1.0, True, [1, 0])
    """
    checks.not_negative("threshold", threshold)
    means_a, means_b = _tensor(means_a), _tensor(means_b)
    if means_a.dim() != 2 or means_a.shape != means_b.shape:
        raise ValueError(
            f"needs the means of the same examples and as many latents, got {tuple(means_a.shape)} and {tuple(means_b.shape)}"
        )
    n, k = means_a.shape
    if n <= k + 1:
        raise ValueError(f"{n} examples of {k} latents: at least {k + 2} are needed")
    a, b = (means.detach().cpu().double() for means in (means_a, means_b))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("means must be finite")
    a, b = a - a.mean(0), b - b.mean(0)
    on_a, on_b = ((x.square().mean(0) > threshold) for x in (a, b))
    active = int(min(on_a.sum(), on_b.sum()))
    channels, partner = torch.full((k,), math.nan, dtype=torch.float64), torch.full((k,), -1)
    if not active:
        return Alignment(math.nan, math.nan, math.nan, math.nan, 0, channels, partner)
    unit_a, unit_b = (x / x.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny) for x in (a, b))
    correlation = (unit_a.T @ unit_b).abs().clamp(max=1.0)
    both = on_a & on_b
    channels[both] = correlation.diagonal()[both]
    rows, columns = on_a.nonzero().flatten(), on_b.nonzero().flatten()
    pairs = linear_sum_assignment(correlation[rows][:, columns].numpy(), maximize=True)
    chosen = [rows[torch.from_numpy(pairs[0])], columns[torch.from_numpy(pairs[1])]]
    partner[chosen[0]] = chosen[1]
    # Canonical correlations are the cosines between the spaces that the active latents span.
    cosines = torch.linalg.svdvals(torch.linalg.qr(a[:, on_a])[0].T @ torch.linalg.qr(b[:, on_b])[0])
    a, b = a[:, on_a], b[:, on_b]
    cka = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    return Alignment(
        by_channel=(correlation.diagonal()[both].sum() / active).item(),
        matched=correlation[chosen[0], chosen[1]].mean().item(),
        cca=cosines.clamp(max=1.0).mean().item(),
        cka=min(cka.item(), 1.0),
        active=active,
        channels=channels,
        partner=partner,
    )


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor | np.ndarray):
        raise ValueError(f"needs a tensor or an array of samples (n, d), got {type(x).__name__}")
    return torch.as_tensor(x)
