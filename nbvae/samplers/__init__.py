"""Ways to draw images from a trained model: they differ in where z comes from, and share the decoder.

`sampler.sample(n, generator)` -> n decoder means (n, *shape), as `likelihood(z).mean`; `sampler.codes(n)` -> the z behind them.
A sampler whose q(z) is nearer to the aggregated posterior gives images nearer to those that the model reconstructs: decoded,
two distributions of z are at most as far apart as they were (data processing).

Models are anything with `posterior(x)`, `likelihood(z)` and `prior()`. Draws take from `generator`, or from torch's global
stream.
"""

from nbvae.samplers._base import Aggregate, Prior, Sampler
from nbvae.samplers.densities import Density, Mixture, SecondStage
from nbvae.samplers.ladders import Chain, Recursive
from nbvae.samplers.priors import Diffusion, Flow, VampPrior

__all__ = [
    "Aggregate",
    "Chain",
    "Density",
    "Diffusion",
    "Flow",
    "Mixture",
    "Prior",
    "Recursive",
    "Sampler",
    "SecondStage",
    "VampPrior",
]
