"""The squared maximum mean discrepancy of q(z) and p(z): exact, and of two samples."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks
from nbvae._tensors import double

# Pairs of components per block.
_BLOCK = 1 << 15


@torch.no_grad()
def mmd(mean: Float[Tensor, "n k"], std: Float[Tensor, "n k"]) -> float:
    """The squared maximum mean discrepancy of q(z) and N(0, I) with the kernel exp(−‖a − b‖²/k²): exact, without draws.

    `mean` and `std` (N, k) are those of the posteriors of the N examples that make up q(z). For independent a and b, Gaussian
    with the difference δ of their means and the sum v of their variances, the kernel's expectation is
    Π_d (1 + 2v_d/k²)^(−1/2) exp(−δ_d²/(k² + 2v_d)), averaged here over all pairs of components.

    >>> import torch
    >>> from nbvae import posterior
    >>> zero, one = torch.zeros(10, 2), torch.ones(10, 2)
    >>> round(posterior.mmd(zero, one), 12), round(posterior.mmd(zero + 1.0, one), 3)  # q(z) = p(z), and moved by one
    (0.0, 0.221)
    """
    checks.tensor("mean", mean, 2), checks.tensor("std", std, 2)
    mean, variance = double(mean), double(std).square()
    n, k = mean.shape
    scale = float(k**2)

    def kernel(delta: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
        spreads = [1 + 2 / scale * each for each in v]
        exponent = functools.reduce(torch.add, (each.square() / spread for each, spread in zip(delta, spreads, strict=True)))
        return (exponent / -scale).exp() * functools.reduce(torch.mul, spreads).rsqrt()

    # Latent by latent, (rows, n) at a time; each pair once, for the kernel is symmetric.
    mean, variance = mean.T.contiguous(), variance.T.contiguous()
    rows = max(1, _BLOCK // n)
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
    """The squared maximum mean discrepancy of two samples, with gradients (Gretton et al. 2012, eqs. 3 and 5).

    - `a`, `b`: the samples, (n, k) and (m, k); leading dimensions are models that are trained together.
    - `unbiased`: whether the pairs of a point with itself are left out. The value may then be negative; with them it is biased
      upwards, by about 2(1 − E kernel)/n, and >= 0.

    The kernel is exp(−‖a − b‖²/k²).

    >>> import torch
    >>> from nbvae import posterior
    >>> a = torch.tensor([[0.0], [1.0]])
    >>> posterior.sample_mmd(a, a), posterior.sample_mmd(a, a + 1.0) > 0
    (tensor(0.), tensor(True))
    """
    # Not by matrix products: their rounding is felt in the distance of near points.
    apart = [torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist") for u, v in ((a, a), (b, b), (a, b))]
    within_a, within_b, across = ((-distance.square() / a.shape[-1] ** 2).exp().mean((-2, -1)) for distance in apart)
    if unbiased:
        n, m = a.shape[-2], b.shape[-2]
        within_a, within_b = (n * within_a - 1) / (n - 1), (m * within_b - 1) / (m - 1)
    return within_a + within_b - 2 * across
