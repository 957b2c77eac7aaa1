"""The decoder's distribution p(x|z): from the decoder network's output to a `torch.distributions` object over x.

Each likelihood is a module called with the output (*batch, n), n the number of dimensions of x; it returns a distribution
with event shape `shape`, so that `log_prob` is in nats, summed over the dimensions of each example.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import checks


class Bernoulli(nn.Module):
    """Independent Bernoulli pixels; the network's output is their logits. A probability mass on {0, 1}ⁿ only."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, output: Float[Tensor, "*batch n"]) -> distributions.Independent:
        pixels = distributions.Bernoulli(logits=output.unflatten(-1, self.shape), validate_args=False)
        return distributions.Independent(pixels, len(self.shape), validate_args=False)

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless every pixel is 0 or 1: on grey pixels this "likelihood" has no normaliser."""
        if not ((x == 0) | (x == 1)).all():
            raise ValueError(
                "a bernoulli likelihood needs pixels that are 0 or 1: load the data with binarize='threshold', 'static' "
                "or 'dynamic', or use likelihood='gaussian'"
            )


class Gaussian(nn.Module):
    """Isotropic Gaussian N(output, σ²I) with a fixed standard deviation σ > 0, in the units of x."""

    sigma: Tensor

    def __init__(self, shape: Sequence[int], sigma: float = 1.0):
        super().__init__()
        self.shape = tuple(shape)
        # Full event rank, so that a stack of models with different σ broadcasts.
        self.register_buffer("sigma", torch.full((1,) * len(self.shape), checks.positive("sigma", sigma)))

    def forward(self, output: Float[Tensor, "*batch n"]) -> distributions.Independent:
        pixels = distributions.Normal(output.unflatten(-1, self.shape), self.sigma, validate_args=False)
        return distributions.Independent(pixels, len(self.shape), validate_args=False)

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """A density on all of Rⁿ: any finite data will do."""
        if not x.isfinite().all():
            raise ValueError("a gaussian likelihood needs finite data; the data hold nan or inf")


LIKELIHOODS = ("bernoulli", "gaussian")


def make(name: str, shape: Sequence[int], sigma: float | None = None) -> Bernoulli | Gaussian:
    """The likelihood called `name` for data of shape `shape`. `sigma` belongs to "gaussian" alone (default 1)."""
    checks.choice("likelihood", name, LIKELIHOODS)
    if name == "gaussian":
        return Gaussian(shape, 1.0 if sigma is None else sigma)
    if sigma is not None:
        raise ValueError(f"sigma belongs to likelihood='gaussian'; likelihood={name!r} has none")
    return Bernoulli(shape)


def gaussian_distortion(mse: float, sigma2: float, n: int) -> float:
    """−log N(x; x̂, σ²I) in nats for a squared error `mse` summed over n dimensions: n/2 log 2πσ² + mse/2σ²."""
    return n / 2 * math.log(2 * math.pi * sigma2) + mse / (2 * sigma2)
