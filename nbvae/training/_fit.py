"""`fit`: train one model."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nbvae import data, objectives
from nbvae._randomness import Streams, seeded
from nbvae.training import calibration
from nbvae.training._config import TrainConfig, device
from nbvae.training._loop import _loop
from nbvae.training.store import Run


class Diverged(FloatingPointError):
    """A loss was not finite. `runs` holds what was trained, each model as it was at the end of its last good epoch."""

    def __init__(self, message: str, runs: list[Run]):
        super().__init__(message)
        self.runs = runs


def fit(
    model: nn.Module,
    dataset: data.Dataset,
    objective: Callable[..., objectives.Loss],
    config: TrainConfig = TrainConfig(),
) -> Run:
    """Train `model` in place on `dataset.train` and return the `Run`.

    Batches, posterior noise and dynamic binarisation are drawn from torch's global stream, seeded with `config.seed` and put
    back afterwards. Nothing is read from the device inside an epoch; a loss that is not finite is found at the epoch's end:
    `Diverged` names its first step, and the model keeps the state of the last good epoch's end.

    Raises `ValueError` for data that the model's likelihood is no likelihood for (grey pixels, another shape).
    """
    place = device(config.device)
    _accept(model, dataset, objective)
    start = time.perf_counter()
    companion = _companion(objective, model.to(place), config.seed)
    calibration.start(model, dataset, config.seed)
    with seeded(config.seed, place):
        [(history, problem)] = _loop(model, objective, dataset, config, Streams([None], place), companion)
    calibration.settle(model, objective, dataset, config.seed)
    run = Run(model, objective, config, history, time.perf_counter() - start)
    if problem:
        raise Diverged(problem, [run])
    return run


def _companion(objective: Any, model: Any, seed: int) -> nn.Module | None:
    """The network that an objective trains beside the model (FactorVAE's discriminator), if it has one."""
    make = getattr(objective, "companion", None)
    prior = model.prior().mean if make else torch.zeros(())
    with seeded(seed, prior.device):
        made = make(prior.shape[-1]) if make else None
    return made if made is None else made.to(prior)


def _accept(model: nn.Module, dataset: data.Dataset, objective: Any) -> None:
    """Refuse data that the model has no likelihood for. Dynamic binarisation makes 0/1 pixels of grey ones: check a draw."""
    if dataset.binarize == "dynamic" and getattr(objective, "estimator", "") in ("exact", "discriminator"):
        raise ValueError(
            "binarize='dynamic' has no fixed set of codes for this objective: use binarize='static' or a minibatch estimator"
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"only a torch module can be trained, and {type(model).__name__} is none")
    if hasattr(model, "beta_range") and not isinstance(objective, objectives.MultiBeta):
        raise ValueError(f"a model of many β is trained with objectives.MultiBeta(), got {objective}")
    check = getattr(model, "check", None)
    if callable(check):
        with torch.random.fork_rng(devices=[]):
            check(dataset.draw(dataset.train))
