"""The objective of one model for all β."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks
from nbvae._randomness import streams
from nbvae.objectives.protocol import Loss, Objective, Terms, set_field, weights_on


@dataclass(frozen=True)
class MultiBeta(Objective):
    """E_β β^(−power) (D + βR) of a `models.MultiBetaVAE`, log β uniform over its range: the whole curve in one training.

    Each example has its own β. The draws of a batch are stratified, one in each of `batch` equal parts of log β's range, from
    a random example on: each example's log β is uniform, and most of the average's noise is gone.

    - `power`: D + βR is larger where β is, and so are its gradients; β^(−power) evens them out. It is >= 0; 0 is the weighting
      of the Multi-Rate VAE (Bae et al. 2023).

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.MultiBeta()(models.MultiBetaVAE((4,), 3, beta_range=(0.1, 10.0)), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    power: float = 0.25
    weights: ClassVar = weights_on("β", "β", "β")
    formula: ClassVar = "E_β β^(−power) (D + βR)"
    reference: ClassVar = "after Bae et al. (2023)"

    def __post_init__(self) -> None:
        set_field(self, "power", checks.not_negative("power", self.power))

    def check(self, model: Any, dataset: Any = None) -> None:
        """`ValueError` for a `model` that does not take β as an input; any `dataset` will do."""
        if not hasattr(model, "beta_range"):
            raise ValueError(f"MultiBeta trains a models.MultiBetaVAE, got {type(model).__name__}")

    def __call__(self, model: Any, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        self.check(model)
        prior = model.prior()
        x = x.to(prior.mean)
        low, high = (math.log(beta) for beta in model.beta_range)
        batch = x.shape[-1 - len(model.shape)]
        if not batch:
            raise ValueError(f"x must have at least one example, got the shape {tuple(x.shape)}")
        uniform = streams(model, x.device).uniform((batch + 1,), x)
        first = (uniform[..., :1] * batch).floor()
        part = (torch.arange(batch, dtype=x.dtype, device=x.device) + first) % batch
        log_beta = low + (part + uniform[..., 1:]) * ((high - low) / batch)
        condition = model.condition(log_beta.unsqueeze(-1))
        posterior = model.encode(x, condition)
        distortion = -model.decode(posterior.rsample(), condition).log_prob(x)
        terms = Terms(distortion, distributions.kl_divergence(posterior, prior))
        loss = terms.distortion + log_beta.exp() * terms.rate
        # Of a stack trained with several powers: (models, 1), beside the batch.
        power = self.power.unsqueeze(-1) if isinstance(self.power, Tensor) else self.power
        return Loss(((-power * log_beta).exp() * loss).mean(-1), terms)
