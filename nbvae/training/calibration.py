"""A decoder's σ from data in closed form: before, during and after training, and whether it has come to its floor."""

import logging
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks, data, objectives
from nbvae._randomness import seeded
from nbvae.models import likelihoods

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
    pixels = gaussian(model)
    if type(pixels) is not likelihoods.Gaussian:
        raise ValueError("only the sigma of a gaussian likelihood can be calibrated")
    if pixels.mode in ("z", "z_diag"):
        raise ValueError(f"sigma={pixels.mode!r} depends on z: there is no one number to calibrate")
    error = _mean_error(model, pixels, x)
    if not error.isfinite().all():
        raise ValueError("x has a squared error that is not finite under this model: its sigma is left as it was")
    pixels.set_variance(error)


def update(model: Any, x: Float[Tensor, "..."]) -> None:
    """`calibrate` without its checks, for the training loop: x (batch, *shape), or (models, batch, *shape) for a stack."""
    pixels = gaussian(model)
    pixels.set_variance(_mean_error(model, pixels, x))


def gaussian(model: Any) -> Any:
    """The module that makes a distribution with a σ of a model's outputs, or of its stack's; None if it has none of ours."""
    pixels = getattr(getattr(model, "stacked", model), "observation", None)
    return pixels if isinstance(pixels, likelihoods.Gaussian) else None


def start(model: nn.Module, dataset: data.Dataset, seed: int) -> None:
    """Let a σ that gradients learn start at the scale of the data, unless it has been trained before.

    Multiplied is σ², by the mean of (error/σ)²: of the factors the most likely, so that it is 1 for a σ(z) that was fitted by
    a loop of one's own. An untrained σ is near 1, and the factor near the MSE.
    """
    pixels = gaussian(model)
    if pixels is not None and pixels.mode in ("global", "z", "z_diag") and (pixels.variance == 1).all():
        with seeded(seed, pixels.variance.device):
            factor = _mean_error(_plain(model), pixels, dataset.draw(dataset.train[:10_000]), relative=True)
        pixels.set_variance(factor * (pixels.scale.square().squeeze() if pixels.mode == "global" else 1))


def settle(model: nn.Module, objective: Any, dataset: data.Dataset, seed: int) -> None:
    """Set an "optimal" σ from the training set, and say so where a σ has come to rest on its floor."""
    pixels = gaussian(model)
    floors = {}
    with seeded(seed, next(model.parameters()).device):
        if pixels is not None and pixels.mode == "optimal":
            update(model, dataset.draw(dataset.train))
        some = dataset.draw(dataset.train[:1000])
        if pixels is not None:
            floors[f"sigma={pixels.mode!r}"] = at_floor(_plain(model), some)
        if hasattr(objective, "at_floor"):
            floors[f"the sigma of {objective}"] = objective.at_floor(model, some)
    for name, share in floors.items():
        if share:
            _log.warning(
                "%s is on its floor of %g for %.2g %% of its values: the data can be reproduced exactly there, "
                "and only the floor bounds the likelihood",
                name,
                likelihoods.FLOOR,
                100 * share,
            )


@torch.no_grad()
def at_floor(model: Any, x: Float[Tensor, "batch *shape"]) -> float:
    """The share of the σs, over one draw of z for each x (batch, *shape), that are on their floor; 0 for a fixed σ or none."""
    pixels = gaussian(model)
    if pixels is None or pixels.mode == "fixed":
        return 0.0
    likelihood = model.likelihood(model.posterior(x.to(model.prior().mean)).sample())
    scale = getattr(getattr(likelihood, "base_dist", None), "scale", None)
    return 0.0 if scale is None else (scale <= likelihoods.FLOOR * (1 + 1e-5)).double().mean().item()


@torch.no_grad()
def _mean_error(model: Any, pixels: likelihoods.Gaussian, x: Tensor, relative: bool = False) -> Float[Tensor, "*models"]:
    """MSE/n, or the mean of (error/σ)²."""
    rank = len(pixels.shape)
    errors = []
    for part in x.split(max(1, _CHUNK // math.prod(pixels.shape)), dim=-1 - rank):
        part = part.to(model.prior().mean)
        likelihood = model.likelihood(model.posterior(part).rsample())
        error = part - likelihood.mean
        errors.append((error / likelihood.base_dist.scale if relative else error).square().flatten(-rank).mean(-1))
    return torch.cat(errors, -1).mean(-1)


def _plain(model: Any) -> Any:
    """A model of many β at the smallest, where σ is least, with the σ of them all; any other model itself."""
    if not hasattr(model, "beta_range"):
        return model
    view = model.at(model.beta_range[0])
    view.observation = model.observation
    return view
