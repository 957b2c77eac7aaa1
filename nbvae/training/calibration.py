"""A decoder's σ from data in closed form: before, during and after training, and whether it has come to its floor."""

import logging
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, data, objectives
from nbvae._measuring import measuring
from nbvae._randomness import seeded
from nbvae.models import likelihoods
from nbvae.objectives.protocol import hook

# Values that are decoded at once: 64 MiB in float32.
_CHUNK = 1 << 24
_log = logging.getLogger("nbvae.training")


def calibrate(model: Any, x: Float[Tensor, "batch *shape"]) -> None:
    """Set σ² of a trained Gaussian model to MSE/n of x (batch, *shape), with one draw z ~ q(z|x) for each: its best value.

    For a fixed σ, "global" or "optimal", whose value is replaced. x should be the training set: on held-out data this fits σ to
    them. `ValueError` for a σ that depends on z, for a likelihood that is not Gaussian and for x that is not the model's data.
    """
    objectives.check_data(model, x)
    checks.examples(x)
    observation = observation_with_sigma(model)
    if type(observation) is not likelihoods.Gaussian:
        raise ValueError("only the sigma of a gaussian likelihood can be calibrated")
    if observation.mode in ("z", "z_diag"):
        raise ValueError(f"sigma={observation.mode!r} depends on z: there is no one number to calibrate")
    with measuring(model):
        error = _mean_error(model, observation, x)
    if not error.isfinite().all():
        raise ValueError("x has a squared error that is not finite under this model: its sigma is left as it was")
    observation.set_variance(error)


def update(model: Any, x: Float[Tensor, "..."]) -> None:
    """`calibrate` without its checks, for the training loop: x (batch, *shape), or (models, batch, *shape) for a stack."""
    observation: Any = observation_with_sigma(model)
    observation.set_variance(_mean_error(model, observation, x))


def observation_with_sigma(model: Any) -> likelihoods.Gaussian | None:
    """The part of a model that makes a distribution with a σ of its decoder's outputs; None if it has none of ours."""
    observation = getattr(model, "observation", None)
    return observation if isinstance(observation, likelihoods.Gaussian) else None


def is_optimal(model: Any) -> bool:
    """Whether a model's σ is set to its best value at each batch of training."""
    return getattr(observation_with_sigma(model), "mode", None) == "optimal"


def start(model: Any, dataset: data.Dataset, seed: int) -> None:
    """Let a σ that gradients learn start at the scale of the data, unless it has been trained before.

    Multiplied is σ², by the mean of (error/σ)²: of the factors the most likely, so that it is 1 for a σ(z) that was fitted by
    a loop of one's own. An untrained σ is near 1, and the factor near the MSE.
    """
    observation = observation_with_sigma(model)
    if observation is not None and observation.mode in ("global", "z", "z_diag") and (observation.variance == 1).all():
        with seeded(seed, observation.variance.device), measuring(model):
            factor = _mean_error(_at_smallest_beta(model), observation, dataset.draw(dataset.train[:10_000]), relative=True)
        observation.set_variance(factor * (observation.scale.square().squeeze() if observation.mode == "global" else 1))


def settle(model: Any, objective: Any, dataset: data.Dataset, seed: int) -> None:
    """Set an "optimal" σ from the training set, and say so where a σ has come to rest on its floor."""
    observation = observation_with_sigma(model)
    floors = {}
    with seeded(seed, model.prior().mean.device):
        if is_optimal(model):
            with measuring(model):
                update(model, dataset.draw(dataset.train))
        some = dataset.draw(dataset.train[:1000])
        if observation is not None:
            floors[f"sigma={observation.mode!r}"] = at_floor(_at_smallest_beta(model), some)
        floors[f"the sigma of {objective}"] = hook(objective, "at_floor")(model, some)
    for name, share in floors.items():
        if share:
            _log.warning(
                "%s is on its floor of %g for %.2g %% of its values: the data can be reproduced exactly there, "
                "and only the floor bounds the likelihood",
                name,
                likelihoods.FLOOR,
                100 * share,
            )


def at_floor(model: Any, x: Float[Tensor, "batch *shape"]) -> float:
    """The share of the σs, over one draw of z for each x (batch, *shape), that are on their floor; 0 for a fixed σ or none."""
    observation = observation_with_sigma(model)
    if observation is None or observation.mode == "fixed":
        return 0.0
    with measuring(model):
        likelihood = model.likelihood(model.posterior(x.to(model.prior().mean)).sample())
    scale = getattr(getattr(likelihood, "base_dist", None), "scale", None)
    return 0.0 if scale is None else (scale <= likelihoods.FLOOR * (1 + 1e-5)).double().mean().item()


@torch.no_grad()
def _mean_error(model: Any, observation: likelihoods.Gaussian, x: Tensor, relative: bool = False) -> Float[Tensor, "*models"]:
    """MSE/n, or the mean of (error/σ)²."""
    rank = len(observation.shape)
    errors = []
    for part in x.split(max(1, _CHUNK // math.prod(observation.shape)), dim=-1 - rank):
        part = part.to(model.prior().mean)
        likelihood = model.likelihood(model.posterior(part).rsample())
        error = part - likelihood.mean
        errors.append((error / likelihood.base_dist.scale if relative else error).square().flatten(-rank).mean(-1))
    return torch.cat(errors, -1).mean(-1)


def _at_smallest_beta(model: Any) -> Any:
    """A model of many β at the smallest, where σ is least, with the σ of them all; any other model itself."""
    if not hasattr(model, "beta_range"):
        return model
    view = model.at(model.beta_range[0])
    view.observation = model.observation
    return view
