"""What a VAE is above a codebook by, part by part: nats of D/β + R on images after each replacement of what it is made of.

With σ² = β/2 its −ELBO is D/β + R and a constant, and a bound on log p(x) bounds it.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, distributions

from nbvae import estimators, samplers
from nbvae.results import Estimate
from nbvae.training import calibration
from studies import inside

SAVED = "saved by the mixture"
STAGES = {  # a part lies between what is with and what is without it
    "amortisation": ("with its own encoder", "with the best Gaussians"),
    "family": ("with the best Gaussians", "with the best encoder"),
    "prior": ("with the best encoder", "with the best encoder and the mixture"),
    "decoder": ("with the best encoder and the mixture", "nats of the codebook"),
}


class WithPrior:
    """A model under another prior, with its own posterior: what importance sampling asks for."""

    def __init__(self, model: Any, density: samplers.Mixture):
        self.model = model
        fitted, like = density.fitted, model.prior().mean
        chosen = distributions.Categorical(logits=fitted.log_weight.to(like))
        parts = distributions.MultivariateNormal(fitted.mean.to(like), scale_tril=fitted.root.to(like), validate_args=False)
        self.mixture = distributions.MixtureSameFamily(chosen, parts, validate_args=False)

    def posterior(self, x: Tensor) -> Any:
        return self.model.posterior(x)

    def likelihood(self, z: Tensor) -> Any:
        return self.model.likelihood(z)

    def prior(self) -> Any:
        return self.mixture


def measured(model: Any, train: Tensor, x: Tensor, beta: float, times: int, seed: int, **plan: Any) -> dict[str, Estimate]:
    """Nats of D/β + R on x after each replacement, and what the mixture saves of the rate with the VAE's own encoder."""
    view = copy.deepcopy(model)
    observation = calibration.observation_with_sigma(view)
    assert observation is not None
    observation.set_variance(torch.tensor(beta / 2))
    constant = 0.5 * math.prod(x.shape[1:]) * math.log(math.pi * beta)
    mixture = samplers.Mixture(view, train, plan["components"], draws=5, seed=seed)
    samples = times * plan["samples"]
    own = estimators.evaluate(view, x, 1.0, plan["draws"], seed + 1)
    gaussian = -inside.best_gaussians(view, x, times * plan["steps"], seed)
    exact = -estimators.iwae(view, x, samples, seed)
    learned = -estimators.iwae(WithPrior(view, mixture), x, samples, seed)
    return {
        "with its own encoder": Estimate(own.loss() - constant, own.loss_stderr, len(x)),
        "with the best Gaussians": gaussian - constant,
        "with the best encoder": exact - constant,
        "with the best encoder and the mixture": learned - constant,
        SAVED: Estimate(own.rate - mixture.rate(x, plan["draws"], seed), n=len(x)),
    }
