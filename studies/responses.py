"""How networks respond to β, beside the ways that `models.MultiBetaVAE` has: what the studies of many β compare it with."""

import math
from typing import Any, cast

import torch
from torch import distributions, nn

from nbvae import models
from nbvae.models.multi_beta import Condition
from nbvae.models.vae import normal


def many(conditioning: str, shape: dict[str, Any], beta_range: tuple[float, float]) -> models.MultiBetaVAE:
    """A new model of many β."""
    kind = {"free variance": FreeVariance, "gain": Gain}.get(conditioning, models.MultiBetaVAE)
    model = kind(**shape, beta_range=beta_range, conditioning="gates" if conditioning == "gates" else "film")
    if conditioning == "log β alone":
        response: Any = model.response
        response.features = straight(beta_range)
        modulation = nn.Linear(1, response.modulation.out_features)
        nn.init.zeros_(modulation.weight)
        modulation.bias.data.copy_(response.modulation.bias.data)
        response.modulation = modulation
    return model


class FreeVariance(models.MultiBetaVAE):
    """The posterior's log-variance as the encoder gives it, without the response to β that the linear optimum has."""

    def encode(self, x: torch.Tensor, condition: Condition) -> distributions.Independent:
        mean, log_variance = self.encoder(self._flat(x), condition.encoder).chunk(2, dim=-1)
        return normal(mean, (0.5 * log_variance).exp())


class Gain(models.MultiBetaVAE):
    """Networks that do not see β: it scales and shifts what the encoder says of the code, and scales the decoder's input.

    So do codecs of variable rate (Cui et al. 2021). The posterior's log-variance has the response to β that film has.
    """

    def _build(self, network: str, hidden: tuple[int, ...], **own: nn.Module) -> None:
        super()._build(network, hidden, **own)
        self.inverse = nn.Linear(cast(Any, self.response).features.size, self.latent_dim)
        nn.init.zeros_(self.inverse.weight)
        nn.init.ones_(self.inverse.bias)

    def condition(self, log_beta: torch.Tensor) -> Condition:
        _, encoder, decoder = super().condition(log_beta)
        same = [(1.0 - index % 2) * torch.ones_like(part) for index, part in enumerate([*encoder, *decoder])]
        return Condition(log_beta, [*same[: len(encoder) - 2], *encoder[-2:]], same[len(encoder) :])

    def outputs(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        return super().outputs(z * self.scale(condition.log_beta), condition)

    def scale(self, log_beta: torch.Tensor) -> torch.Tensor:
        """What the decoder's input is multiplied by."""
        return self.inverse(cast(Any, self.response).features(log_beta))


def straight(beta_range: tuple[float, float]) -> nn.Linear:
    """log β, from −1 to 1 over the range, in place of the features: a layer that is not trained."""
    low, high = map(math.log, beta_range)
    layer = nn.Linear(1, 1).requires_grad_(False)
    layer.weight.fill_(2 / (high - low))
    layer.bias.fill_((low + high) / (low - high))
    return layer
