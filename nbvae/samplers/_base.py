"""What every sampler has, the prior, and the aggregated posterior itself."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks
from nbvae._measuring import check_model, measuring
from nbvae._randomness import seeded
from nbvae._tensors import parts
from nbvae.objectives import check_data
from nbvae.posterior import encode


class Sampler:
    """Draws of z, decoded by one `model`: subclasses say where z comes from, `_draw(n)` -> (n, k) on the model's device.

    The models of a sampler are in evaluation mode while they are fitted to, drawn from and decoded, and left as they were.

    >>> from nbvae import models, samplers
    >>> class Origin(samplers.Sampler):
    ...     def _draw(self, n, generator=None):
    ...         return torch.zeros(n, 2)
    >>> Origin(models.VAE((1, 8, 8), latent_dim=2)).sample(3).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(self, model: Any):
        check_model(model)
        self.model = model

    def codes(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n k"]:
        """n draws of z, (n, k), from `generator`, or from torch's global stream without one."""
        n = checks.whole("n", n)
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(
                f"generator must be a torch.Generator, or None for the global stream, got {checks.short(generator)}"
            )
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else None))
        with measuring(self), seeded(seed, self.model.prior().mean.device):
            return self._draw(n)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """n decoder means, (n, *shape), from `generator`, or from torch's global stream without one."""
        z = self.codes(n, generator)
        with measuring(self):
            return decode(self.model, z)

    def _draw(self, n: int) -> Tensor:
        raise NotImplementedError


class Prior(Sampler):
    """z ~ p(z): what the model was trained for, and as good as q(z) is near to p(z).

    `model` is any with `posterior(x)`, `likelihood(z)` and `prior()`; `ValueError` for one of many β.

    >>> from nbvae import models, samplers
    >>> samplers.Prior(models.VAE((1, 8, 8), 2, hidden=(8,))).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def _draw(self, n: int) -> Tensor:
        return self.model.prior().sample((n,))


class Aggregate(Sampler):
    """z ~ q(z|x) of a random row of x: the aggregated posterior itself. It is no generative model, as it needs the data.

    `model` has a diagonal Gaussian posterior, and `x` (N, *shape) at least two rows. What a perfect model of q(z) could reach,
    and the reference for the others.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> samplers.Aggregate(models.VAE(digits.shape, 2, hidden=(8,)), digits.train).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, model: Any, x: Float[Tensor, "batch *shape"]):
        super().__init__(model)
        self.mean, self.std = codes_of(model, x, least=2)

    def _draw(self, n: int) -> Tensor:
        row = torch.randint(len(self.mean), (n,), device=self.mean.device)
        return torch.normal(self.mean[row], self.std[row])


def codes_of(model: Any, x: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    check_data(model, x, least)
    return encode(model, x)


def repeated(code: tuple[Tensor, Tensor], draws: int) -> Float[Tensor, "draws n k"]:
    mean, std = (each.expand(draws, *each.shape) for each in code)
    return torch.normal(mean, std)


def draws_of(model: Any, x: Tensor, draws: int) -> Float[Tensor, "n_draws k"]:
    """`draws` draws of q(z|x) for each x, example by example within each draw."""
    return repeated(codes_of(model, x, least=2), draws).flatten(0, 1)


def decode(model: Any, z: Float[Tensor, "n k"], draw: bool = False) -> Float[Tensor, "n *shape"]:
    size = model.likelihood(z[:1]).mean.numel()
    likelihoods = map(model.likelihood, parts(z, size=size))
    return torch.cat([each.sample() if draw else each.mean for each in likelihoods])
