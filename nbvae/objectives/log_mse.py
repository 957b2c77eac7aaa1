"""The log-MSE score of the talk: a training loss, no likelihood."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks
from nbvae._measuring import measuring
from nbvae.models import likelihoods
from nbvae.objectives.protocol import Loss, Model, Objective, Terms, set_field, weights_on


@dataclass(frozen=True)
class LogMSE(Objective):
    """n/2 (log(2π MSE_i/n) + 1) + βR: the Gaussian loss at each example's own best σ_i² = MSE_i/n (Kim & Lee 2024).

    This is a training score, not a likelihood: σ_i is chosen with x in view, and exp(−score) does not integrate to one over x.
    It lies below −log p(x|z) of every isotropic Gaussian decoder with the same mean, so never put it on a likelihood axis;
    `Terms.distortion` and `Run.history` hold it. The model's own σ is not used. With `sigma="optimal"` training calibrates it
    beside, and the model has a likelihood that can be measured.

    - `beta`: the weight of the rate, > 0. σ_i is at least `likelihoods.FLOOR`; on it the score is the Gaussian's.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.LogMSE(beta=0.5)(models.VAE((4,), 3, likelihood="gaussian"), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    beta: float = 1.0
    weights: ClassVar = weights_on("β", "β", "β")
    formula: ClassVar = "n/2 log MSE_i + βR"
    reference: ClassVar = "Kim & Lee (2024)"

    def __post_init__(self) -> None:
        set_field(self, "beta", checks.positive("beta", self.beta))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        prior = model.prior()
        posterior = model.posterior(x := x.to(prior.mean))
        mse, n = self._mean_error(model.likelihood(posterior.rsample()), x)
        variance = mse.clamp(min=likelihoods.FLOOR**2)
        # Above the floor mse/variance is 1, and constant.
        score = 0.5 * n * ((2 * math.pi * variance).log() + mse / variance)
        terms = Terms(score, distributions.kl_divergence(posterior, prior))
        return Loss(score.mean(-1) + self.beta * terms.rate.mean(-1), terms)

    def at_floor(self, model: Model, x: Float[Tensor, "batch *shape"]) -> float:
        """The share of the σ_i of a `model`, over one draw of z for each x, that are on the floor."""
        with measuring(model):
            mse, _ = self._mean_error(model.likelihood(model.posterior(x := x.to(model.prior().mean)).sample()), x)
        return (mse <= likelihoods.FLOOR**2).double().mean().item()

    def _mean_error(self, likelihood: distributions.Distribution, x: Tensor) -> tuple[Tensor, int]:
        """MSE_i/n (*models, batch), and n."""
        if not isinstance(getattr(likelihood, "base_dist", None), distributions.Normal):
            raise ValueError("LogMSE is a score for gaussian decoders: use likelihood='gaussian'")
        rank = len(likelihood.event_shape)
        return (x - likelihood.mean).square().flatten(-rank).mean(-1), math.prod(likelihood.event_shape)
