"""`fit`: train one model."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nbvae import checks, data, objectives
from nbvae._measuring import check_distributions, check_model
from nbvae._randomness import Streams, seeded
from nbvae.objectives.protocol import hook
from nbvae.training import _loop, calibration, stacking
from nbvae.training._config import TrainConfig, device
from nbvae.training.store import Run

Objective = str | Callable[..., objectives.Loss]


class Diverged(FloatingPointError):
    """A loss was not finite. `runs` holds what was trained, each model as it was at the end of its last good epoch.

    >>> from nbvae import data, models, objectives, training
    >>> ds, wild = data.load("digits"), training.TrainConfig(epochs=1, lr=1e12)
    >>> try:
    ...     training.fit(models.VAE(ds.shape, 2), ds, objectives.VAE(), wild)
    ... except training.Diverged as error:
    ...     len(error.runs)
    1
    """

    def __init__(self, message: str, runs: list[Run]):
        super().__init__(message)
        self.runs = runs


def fit(
    model: nn.Module,
    dataset: data.Dataset,
    objective: Objective,
    config: TrainConfig = TrainConfig(),
    on_epoch: Callable[[int, _loop.History], Any] | None = None,
) -> Run:
    """Train `model` in place on `dataset.train` and return the `Run`.

    - `model`: a torch module with `posterior(x)`, `likelihood(z)` and `prior()`. It is trained in training mode and left in it.
    - `dataset`: a `data.Dataset`.
    - `objective`: what to minimise, or the name of a row of `objectives.TABLE`, which is then made with its defaults. Any
      callable will do that takes `(model, x, step=…, reference=…)` and returns an `objectives.Loss`.
    - `config`: how to train.
    - `on_epoch`: called after each epoch as `on_epoch(epoch, history)`, with the epoch's number from 0 and the history so far.
      Training ends if it returns True. Random numbers that it draws, and the mode that it leaves the model in, change nothing.

    Batches, posterior noise and dynamic binarisation are drawn from torch's global stream, seeded with `config.seed` and put
    back afterwards. Nothing is read from the device inside an epoch; a loss that is not finite is found at the epoch's end:
    `Diverged` names its first step, and the model keeps the state of the last good epoch's end.

    Raises `ValueError` for arguments of another kind, and for data that the model's likelihood is no likelihood for (grey
    pixels, another shape).

    >>> from nbvae import data, models, objectives, training
    >>> ds = data.load("digits")
    >>> run = training.fit(models.VAE(ds.shape, 2), ds, objectives.BetaVAE(0.5), training.TrainConfig(epochs=2))
    >>> len(run.history["loss"])
    2
    """
    objective = made(objective)
    accept(model, dataset, objective, config)
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch is a function of (epoch, history), got {on_epoch!r}")
    run, problem = train_one(model, dataset, objective, config, on_epoch)
    if problem:
        raise Diverged(problem, [run])
    return run


def train_one(
    model: nn.Module,
    dataset: data.Dataset,
    objective: Any,
    config: TrainConfig,
    on_epoch: Callable[[int, _loop.History], Any] | None = None,
) -> tuple[Run, str | None]:
    """`fit` without its checks; a problem is returned, not raised."""
    place, start = device(config.device), time.perf_counter()
    companion = companion_of(objective, model.to(place), config.seed)
    calibration.start(model, dataset, config.seed)
    model.train()
    with seeded(config.seed, place):
        trainee = stacking.Alone(model, objective, companion)
        calibrated = calibration.is_optimal(model)
        [(history, problem)] = _loop.train(trainee, dataset, config, Streams([None], place), calibrated, on_epoch=on_epoch)
    calibration.settle(model, objective, dataset, config.seed)
    return Run(model, objective, config, history, time.perf_counter() - start), problem


def companion_of(objective: Any, model: Any, seed: int) -> nn.Module | None:
    """The network that an objective trains beside the model (FactorVAE's discriminator), if it has one."""
    prior = model.prior().mean
    with seeded(seed, prior.device):
        made = hook(objective, "companion")(prior.shape[-1])
    return made if made is None else made.to(prior)


def made(objective: Any) -> Any:
    """The objective, or that of the given name with its defaults; `ValueError` for what cannot be called as one."""
    if isinstance(objective, str):
        checks.choice("objective", objective, objectives.NAMED)
        return objectives.NAMED[objective]()
    if isinstance(objective, nn.Module) and any(parameter.requires_grad for parameter in objective.parameters()):
        raise ValueError(
            f"the objective {type(objective).__name__} has parameters, which are not trained: make them a part of the model"
        )
    if isinstance(objective, type):
        raise ValueError(f"objective must be an object, not a class: {objective.__name__}()")
    if not callable(objective):
        raise ValueError(
            f"objective must be one of {', '.join(objectives.NAMED)}, an object of nbvae.objectives or a function of "
            f"(model, x, step, reference), got {checks.short(objective)}"
        )
    try:
        inspect.signature(objective).bind(None, None, step=0, reference=None)
    except TypeError as error:
        name = getattr(objective, "__name__", type(objective).__name__)
        raise ValueError(
            f"an objective is called as objective(model, x, step=…, reference=…), and {name} cannot be: {error}"
        ) from None
    except ValueError:  # a callable without a signature
        pass
    return objective


def accept(model: Any, dataset: Any, objective: Any, config: Any) -> None:
    """Refuse arguments of another kind, and data that the model has no likelihood for, before anything is trained."""
    if isinstance(model, data.Dataset):
        raise ValueError("the first argument is the model, the second the data: fit(model, dataset, objective)")
    if not isinstance(model, nn.Module):
        hint = f": {model.__name__}(...) makes one" if isinstance(model, type) else ""
        hint = ": call it, for what it makes" if inspect.isroutine(model) else hint
        raise ValueError(f"only a torch module can be trained, got {checks.short(model)}{hint}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"the model has nothing to train: no parameter of the {type(model).__name__} requires a gradient")
    accept_data(dataset)
    if not callable(getattr(model, "at", None)):
        check_model(model)
    elif stacking.is_own(objective) and not isinstance(objective, objectives.MultiBeta):
        raise ValueError(f"a model of many β is trained with objectives.MultiBeta(), got {objective}")
    accept_config(config)
    hook(objective, "check")(model, dataset)
    with torch.random.fork_rng(devices=[]):
        # Dynamic binarisation makes 0/1 pixels of grey ones: check a draw.
        check = getattr(model, "check", None)
        if callable(check):
            check(dataset.draw(dataset.train))
        if not callable(getattr(model, "at", None)):
            some = dataset.train[:2]
            check_distributions(model, dataset.draw(some) if dataset.binarize == "dynamic" else some)


def accept_data(dataset: Any) -> None:
    """`ValueError` unless `dataset` is a `data.Dataset`."""
    if not isinstance(dataset, data.Dataset):
        raise ValueError(
            f"dataset must be a data.Dataset, got {checks.short(dataset)}: "
            "data.Dataset(name, train, validation, test) makes one of tensors, data.load(path) of an .npz"
        )


def accept_config(config: Any) -> None:
    """`ValueError` unless `config` is a `TrainConfig`."""
    if not isinstance(config, TrainConfig):
        hint = ": training.TrainConfig(**config)" if isinstance(config, dict) else ""
        raise ValueError(f"config must be a training.TrainConfig, got {checks.short(config)}{hint}")
