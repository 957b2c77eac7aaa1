"""Densities of z that are learned from codes of data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, data, models, objectives, training
from nbvae._measuring import measuring
from nbvae._randomness import seeded
from nbvae._tensors import double, parts
from nbvae.models.vae import normal
from nbvae.samplers._base import Sampler, codes_of, draws_of
from nbvae.samplers._mixtures import Conditional, mixture
from nbvae.training import calibration

_WIDE = 1 << 10  # values that a density makes of each z, for the number of z that are priced at once


class Density(Sampler):
    """A sampler of a `model` that is a density of z, and prices codes in the prior's place.

    Subclasses have `_log_prob(z)` -> (n,), nats.

    The rate under a density r is R − KL(q(z) ‖ p(z)) + KL(q(z) ‖ r): it saves, nat for nat, what r knows of the aggregated
    posterior and the prior does not.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> mixture = samplers.Mixture(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, n_components=2, draws=1)
    >>> isinstance(mixture, samplers.Density), mixture.rate(digits.test) < 100
    (True, True)
    """

    def rate(self, x: Float[Tensor, "batch *shape"], draws: int = 5, seed: int = 0) -> float:
        """E log q(z|x) − log r(z), nats: what an example costs if this density r takes the prior's place.

        - `x`: the examples (batch, *shape) that the rate is a mean over.
        - `draws`: the number of draws for each, >= 1.
        - `seed`: the seed of the draws, < 2³².
        """
        posterior = normal(*map(double, codes_of(self.model, x)))
        draws, seed = checks.whole("draws", draws), checks.seed("seed", seed, bits=32)
        with measuring(self), seeded(seed, self.model.prior().mean.device):
            z = posterior.sample((draws,))
            log_r = torch.cat([self._log_prob(part).double().cpu() for part in parts(z.flatten(0, 1), size=_WIDE)])
        return (posterior.log_prob(z).cpu().flatten() - log_r).mean().item()

    def _log_prob(self, z: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        raise NotImplementedError


class Mixture(Density):
    """z from a mixture of Gaussians with full covariances that is fitted to draws of q(z).

    - `model`: the model that decodes, with a diagonal Gaussian posterior.
    - `x`: the data (N, *shape) whose aggregated posterior is fitted.
    - `n_components`: the number of Gaussians, >= 1.
    - `draws`: how many z are drawn for each example, >= 1.
    - `seed`: the seed of the draws and of the fit, < 2³².

    Raises `ValueError` for fewer draws than the mixture needs.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> mixture = samplers.Mixture(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, n_components=2, draws=1)
    >>> mixture.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, model: Any, x: Float[Tensor, "batch *shape"], n_components: int = 10, draws: int = 5, seed: int = 0):
        super().__init__(model)
        draws, seed = checks.whole("draws", draws), checks.seed("seed", seed, bits=32)
        with seeded(seed, model.prior().mean.device):
            z = draws_of(model, x, draws)
        self.fitted = Conditional(mixture(z, n_components, seed), 0)

    def _log_prob(self, z: Tensor) -> Tensor:
        return self.fitted.log_prob(z, z[:, :0])

    def _draw(self, n: int) -> Tensor:
        return self.fitted.sample(self.model.prior().sample((n,))[:, :0])


class SecondStage(Density):
    """z from a second VAE that is trained on draws of q(z) (Dai & Wipf 2019).

    - `model`: the model that decodes, with a diagonal Gaussian posterior.
    - `x`: the data (N, *shape) whose aggregated posterior is learned.
    - `config`: how the second VAE is trained, a `training.TrainConfig`; by default for 30 epochs.
    - `hidden`: the widths of its hidden layers.
    - `draws`: how many z are drawn for each example, >= 1.
    - `seed`: the seed of draws, weights and training, < 2³². It takes the place of `config`'s.

    The second VAE has as many latents as z, so that it can learn any density of full dimension, and a learned σ. Its `rate` is
    an upper bound: log r(z) is its own ELBO.

    >>> from nbvae import data, models, samplers, training
    >>> digits = data.load("digits")
    >>> model, config = models.VAE(digits.shape, 2, hidden=(8,)), training.TrainConfig(epochs=1)
    >>> samplers.SecondStage(model, digits.train[:200], config, hidden=(8,), draws=1).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        config: training.TrainConfig | None = None,
        hidden: Sequence[int] = (128, 128),
        draws: int = 5,
        seed: int = 0,
    ):
        super().__init__(model)
        if not isinstance(config, training.TrainConfig | None):
            raise ValueError(f"config must be a training.TrainConfig, or None for the default, got {checks.short(config)}")
        seed, place = checks.seed("seed", seed, bits=32), model.prior().mean.device
        config = config or training.TrainConfig(epochs=30, batch_size=256, lr=3e-3, schedule="one_cycle")
        # Training takes gradients, also where the caller has switched them off.
        with seeded(seed, place), torch.inference_mode(False), torch.enable_grad():
            z = draws_of(model, x, checks.whole("draws", draws)).cpu().float()
            # Standardised, for the second model's first layer; undone in `_draw`.
            self.centre, self.scale = z.mean(0), z.std(0).clamp(min=1e-6)
            z = (z - self.centre) / self.scale
            codes = data.Dataset("codes", z, z, z)
            second = models.VAE(codes.shape, z.shape[1], likelihood="gaussian", sigma="global", hidden=hidden)
            # Where the aggregate is white, β = 1 is the collapse threshold of a learned σ, λ_1/mean λ: start well below it.
            calibration.observation_with_sigma(second).set_variance(torch.tensor(0.25))  # pyright: ignore[reportOptionalMemberAccess]
            training.fit(second, codes, objectives.VAE(), replace(config, seed=seed, device=place.type))
        self.second = second

    def _log_prob(self, z: Tensor) -> Tensor:
        scaled = (z - self.centre.to(z)) / self.scale.to(z)
        terms = objectives.elbo_terms(self.second, scaled.to(self.second.prior().mean))
        return -(terms.distortion + terms.rate) - self.scale.log().sum().to(terms.rate)

    def _draw(self, n: int) -> Tensor:
        z = self.second.likelihood(self.second.prior().sample((n,))).sample()
        return z * self.scale.to(z) + self.centre.to(z)
