"""`fit`: train one model."""

import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nbvae import checks, data, objectives
from nbvae._measuring import check_distributions, check_model
from nbvae._randomness import Streams, seeded
from nbvae._sameness import OF_EVERY_MODULE, settings
from nbvae.objectives.protocol import hook
from nbvae.training import _loop, calibration, stacking
from nbvae.training._config import TrainConfig, device
from nbvae.training._keeping import Interrupted, Session, Store
from nbvae.training._key import Watch
from nbvae.training._progress import History
from nbvae.training.store import Run

Objective = str | Callable[..., objectives.Loss]


class Diverged(FloatingPointError):
    """A loss was not finite, as its `message` says.

    `runs` holds what was trained, each model as it was at the end of its last good epoch.

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
    on_epoch: Callable[[int, History], Any] | None = None,
    store: Store | None = None,
) -> Run:
    """Train `model` in place on `dataset.train` and return the `Run`.

    - `model`: a torch module with `posterior(x)`, `likelihood(z)` and `prior()`. It is trained in training mode and left in it.
    - `dataset`: a `data.Dataset`.
    - `objective`: what to minimise, or the name of a row of `objectives.TABLE`, which is then made with its defaults. Any
      callable will do that takes `(model, x, step=…, reference=…)` and returns an `objectives.Loss`.
    - `config`: how to train.
    - `on_epoch`: called after each epoch as `on_epoch(epoch, history)`, with its number from 0 and a copy of the history so
      far. Training ends if it returns True. Random numbers that it draws, and the mode that it leaves the model in, change
      nothing.
    - `store`: where runs are kept (`Store`). A finished one is loaded into `model`, an interrupted one goes on; `on_epoch` is
      called for the epochs that are trained here. After `Interrupted` the model is as it was given.

    Batches, posterior noise and dynamic binarisation are drawn from torch's global stream, seeded with `config.seed` and put
    back afterwards. Nothing is read from the device inside an epoch; a loss that is not finite is found at the epoch's end:
    `Diverged` names its first step, and the model keeps the state of the last good epoch's end.

    Raises `ValueError` for arguments of another kind, for data that the model's likelihood is no likelihood for (grey pixels,
    another shape), and for weights that would stay as they are: an objective's own, and those of a model in a plain list.

    >>> from nbvae import data, models, objectives, training
    >>> ds = data.load("digits")
    >>> run = training.fit(models.VAE(ds.shape, 2), ds, objectives.BetaVAE(0.5), training.TrainConfig(epochs=2))
    >>> len(run.history["loss"])
    2
    """
    given, before = None, {}
    try:
        with Session(store, config) as session:
            objective = made(objective)
            accept(model, dataset, objective, config)
            if on_epoch is not None and (reason := checks.not_callable_with(on_epoch, 0, {})):
                raise ValueError(f"on_epoch is a function of (epoch, history), got {checks.short(on_epoch)}: {reason}")
            given = stacking.Alone(model, objective, None)
            before = {name: value.detach().clone() for name, value in given.tensors().items()} if store else {}
            key = session.key(model, dataset, objective, config)
            if found := session.find(key):
                run, problem = found.into(model, objective, config)
            else:
                run, problem = train_one(model, dataset, objective, config, session, key, on_epoch)
    except Interrupted:
        if given is not None:
            given.put(before)  # or the same call would be one with another key
        raise
    if problem:
        raise Diverged(problem, [run])
    return run


def train_one(
    model: nn.Module,
    dataset: data.Dataset,
    objective: Any,
    config: TrainConfig,
    session: Session,
    key: str,
    on_epoch: Callable[[int, History], Any] | None = None,
) -> tuple[Run, str | None]:
    """`fit` without its checks; a problem is returned, not raised."""
    place, start = device(config.device), time.perf_counter()
    companion = companion_of(objective, model.to(place), config.seed)
    calibration.start(model, dataset, config.seed)
    model.train()
    trainee = stacking.Alone(model, objective, companion)
    with session.pauses(key, [key], lambda: watch_of(trainee.stateful, objective)) as pauses, seeded(config.seed, place):
        calibrated = calibration.is_optimal(model)
        [(history, problem)] = _loop.train(trainee, dataset, config, Streams([None], place), calibrated, pauses, on_epoch)
    calibration.settle(model, objective, dataset, config.seed)
    run = Run(model, objective, config, history, pauses.seconds + time.perf_counter() - start)
    session.finish(pauses, [(key, run, problem)])
    return run, problem


def watch_of(modules: list[nn.Module], objective: Any) -> Callable[[], str | None]:
    """What says why a training could not go on exactly from its tensors alone, if it could not."""
    if stacking.is_own(objective) and all(map(stacking.broadcasts, modules)):  # they keep nothing: nothing is looked at
        return lambda: None
    watch = Watch(modules, objective)
    return lambda: stacking.STATE if watch.changed() else None


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
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise ValueError("training needs gradients: call it outside torch.no_grad() and torch.inference_mode()")
    if isinstance(model, data.Dataset):
        raise ValueError("the first argument is the model, the second the data: fit(model, dataset, objective)")
    if not isinstance(model, nn.Module):
        hint = f": {model.__name__}(...) makes one" if isinstance(model, type) else ""
        hint = ": call it, for what it makes" if inspect.isroutine(model) else hint
        raise ValueError(f"only a torch module can be trained, got {checks.short(model)}{hint}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"the model has nothing to train: no parameter of the {type(model).__name__} requires a gradient")
    _check_reached(model, objective)
    accept_data(dataset)
    if not callable(getattr(model, "at", None)):
        check_model(model)
    elif stacking.is_own(objective) and not isinstance(objective, objectives.MultiBeta):
        raise ValueError(f"a model of many β is trained with objectives.MultiBeta(), got {objective}")
    accept_config(config)
    hook(objective, "check")(model, dataset)
    with torch.random.fork_rng(devices=[]):
        # Dynamic binarisation makes 0/1 pixels of grey ones: check a draw.
        drawn, check = dataset.draw(dataset.train), getattr(model, "check", None)
        if callable(check):
            check(drawn)
        if not callable(getattr(model, "at", None)):
            check_distributions(model, drawn)


def _check_reached(model: nn.Module, objective: Any) -> None:
    """Refuse weights that no optimiser would move: those of an objective, and of a model those that torch does not find."""
    reached = {id(parameter) for parameter in model.parameters()}
    parts = [(f"the model's {name}" if name else "the model", part) for name, part in model.named_modules()]
    for what, thing in [(f"the objective {type(objective).__name__}", objective), *parts]:
        for name, value in settings(thing).items():
            if name not in OF_EVERY_MODULE and any(id(weight) not in reached for weight in _weights(value)):
                raise ValueError(
                    f"{what} holds weights in {name}, which are not trained: make them parts of the model, as attributes or in "
                    "a torch.nn.ModuleList, or freeze them by requires_grad_(False)"
                )


def _weights(value: Any) -> Iterator[Tensor]:
    """The tensors that require a gradient in an attribute: itself, or what modules and plain containers in it hold."""
    if isinstance(value, Tensor):
        yield from [value] if value.requires_grad and value.is_leaf else []
    elif isinstance(value, nn.Module):
        yield from (parameter for parameter in value.parameters() if parameter.requires_grad)
    elif isinstance(value, list | tuple | set | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _weights(each)


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
