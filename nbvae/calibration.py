"""A decoder's σ from data in closed form: before, during and after training, and whether it has come to its floor."""

import logging
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks, data, elbo, likelihoods
from nbvae.stacking import seeded

# Values that are decoded at once: 64 MiB in float32.
_CHUNK = 1 << 24
_log = logging.getLogger("nbvae.training")


def calibrate(model: Any, x: Float[Tensor, "batch *shape"]) -> None:
    """Set σ² of a trained Gaussian model to MSE/n of x (batch, *shape), with one draw z ~ q(z|x) for each: its best value.

    For a fixed σ, "global" or "optimal", whose value is replaced. x should be the training set: on held-out data this fits σ to
    them. `ValueError` for a σ that depends on z, for a likelihood that is not Gaussian and for x that is not the model's data.
    """
    elbo.check_data(model, x)
    checks.examples(x)
    pixels = _pixels(model)
    if type(pixels) is not likelihoods.Gaussian:
        raise ValueError("only the sigma of a gaussian likelihood can be calibrated")
    if pixels.mode in ("z", "z_diag"):
        raise ValueError(f"sigma={pixels.mode!r} depends on z: there is no one number to calibrate")
    update(model, x)


def update(model: Any, x: Float[Tensor, "..."]) -> None:
    """`calibrate` without its checks, for the training loop: x (batch, *shape), or (models, batch, *shape) for a stack."""
    pixels = _pixels(model)
    pixels.set_variance(_mean_error(model, pixels, x))


def start(model: nn.Module, dataset: data.Dataset, seed: int) -> None:
    """Let a σ that gradients learn start at the scale of the data, unless it has been trained before."""
    pixels: Any = getattr(model, "pixels", None)
    if getattr(pixels, "mode", None) in ("global", "z", "z_diag") and (pixels.variance == 1).all():
        with seeded(seed, pixels.variance.device):
            update(_plain(model), dataset.draw(dataset.train[:10_000]))


def settle(model: nn.Module, objective: Any, dataset: data.Dataset, seed: int) -> None:
    """Set an "optimal" σ from the training set, and say so where a σ has come to rest on its floor."""
    mode = getattr(getattr(model, "pixels", None), "mode", None)
    with seeded(seed, next(model.parameters()).device):
        if mode == "optimal":
            update(model, dataset.draw(dataset.train))
        some = dataset.draw(dataset.train[:1000])
        floors = {f"sigma={mode!r}": at_floor(_plain(model), some)}
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
    """The share of the σs, over one draw of z for each x (batch, *shape), that are on their floor; 0 for a fixed σ."""
    if getattr(_pixels(model), "mode", "fixed") == "fixed":
        return 0.0
    scale = model.likelihood(model.posterior(x.to(model.prior().mean)).sample()).base_dist.scale
    return (scale <= likelihoods.FLOOR * (1 + 1e-5)).double().mean().item()


@torch.no_grad()
def _mean_error(model: Any, pixels: likelihoods.Gaussian, x: Tensor) -> Float[Tensor, "*models"]:
    rank = len(pixels.shape)
    errors = []
    for part in x.split(max(1, _CHUNK // math.prod(pixels.shape)), dim=-1 - rank):
        part = part.to(model.prior().mean)
        rebuilt = model.likelihood(model.posterior(part).rsample()).mean
        errors.append((part - rebuilt).square().flatten(-rank).mean(-1))
    return torch.cat(errors, -1).mean(-1)


def _pixels(model: Any) -> Any:
    return getattr(getattr(model, "stacked", model), "pixels", None)


def _plain(model: Any) -> Any:
    """A model of many β at the smallest, where σ is least, with the σ of them all; any other model itself."""
    if not hasattr(model, "beta_range"):
        return model
    view = model.at(model.beta_range[0])
    view.pixels = model.pixels
    return view
