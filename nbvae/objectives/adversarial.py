"""FactorVAE: the total correlation by a discriminator that is trained beside the model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks
from nbvae._randomness import streams
from nbvae.models import networks
from nbvae.objectives.protocol import Loss, Model, NeedsFixedCodes, draw_terms, not_negative_fields, set_field, weights_on
from nbvae.objectives.weighted import aggregated


@dataclass(frozen=True)
class FactorVAE(NeedsFixedCodes):
    """D + R + γ TC (Kim & Mnih 2018, eq. 2), TC by a discriminator trained beside the model.

    The discriminator tells z ~ q(z) from z with each latent permuted over another batch; its logit is the log density ratio,
    whose mean estimates TC. It is a network of its own optimiser: `companion(latent_dim)` makes one, `companion_loss` is what
    it minimises, and the objective is called with `companion=`. `training.fit` does all three. Called without a companion, and
    with `estimator="exact"`, the term is the exact TC of the reference.

    γ = 0 is the VAE.

    - `gamma`: the weight γ of TC beside the one that R has, >= 0.
    - `estimator`: "discriminator", as published, or "exact".
    - `width`, `depth`: size and number of the discriminator's hidden layers.
    - `lr`: the learning rate of its Adam.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.FactorVAE(gamma=5.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    gamma: float = 5.0
    estimator: str = "discriminator"
    width: int = 128
    depth: int = 3
    lr: float = 1e-3
    weights: ClassVar = weights_on("1", "1 + γ", "1")
    formula: ClassVar = "D + R + γ TC"
    reference: ClassVar = "Kim & Mnih (2018)"

    def __post_init__(self) -> None:
        not_negative_fields(self, "gamma")
        checks.choice("estimator", self.estimator, ("discriminator", "exact"))
        set_field(self, "width", checks.whole("width", self.width))
        set_field(self, "depth", checks.whole("depth", self.depth))
        set_field(self, "lr", checks.positive("lr", self.lr))

    def companion(self, latent_dim: int) -> nn.Module | None:
        """A new discriminator z (..., k) -> logit (..., 1), drawn from torch's global stream; None if none is needed."""
        return None if self.estimator == "exact" else networks.mlp(latent_dim, 1, (self.width,) * self.depth)

    def companion_loss(
        self, companion: nn.Module, model: Model, x: Float[Tensor, "..."], reference: Tensor | None = None
    ) -> Float[Tensor, "*models"]:
        """Cross-entropy of the `companion` on codes of the `model`, drawn anew, so that no gradient reaches the encoder.

        The permuted half is made from a second batch, drawn from the `reference`, or from x itself without one.
        """
        own = streams(model)
        with torch.no_grad():
            like = model.prior().mean
            real = model.posterior(x.to(like)).rsample()
            other = x
            if reference is not None:
                other = reference[own.normal((len(reference),), like).topk(min(real.shape[-2], len(reference))).indices]
            fake = model.posterior(other.to(like)).rsample()
            fake = fake.gather(-2, own.normal(fake.shape[-2:], fake).argsort(-2).expand_as(fake))
        loss = nn.functional.softplus
        return 0.5 * (loss(-companion(real)).mean((-2, -1)) + loss(companion(fake)).mean((-2, -1)))

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "..."],
        step: int = 0,
        reference: Tensor | None = None,
        companion: nn.Module | None = None,
    ) -> Loss:
        draw = draw_terms(model, x)
        if companion is None:
            log_q = aggregated(model, draw, reference, "exact")
            correlation = (log_q.joint - log_q.latents.sum(-1)).mean(-1)
        else:
            correlation = companion(draw.z).mean((-2, -1))
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) + self.gamma * correlation, draw.terms)
