"""The training loop: one model, or a stack of them."""

import contextlib
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from nbvae import data
from nbvae._measuring import measuring
from nbvae._randomness import Streams, seeded
from nbvae.objectives import Loss
from nbvae.training import calibration
from nbvae.training._config import OPTIMIZERS, TrainConfig

# Data that reach beyond this are told so, and named as the likely cause where the very first loss is not finite.
_WIDE = 30.0
_SCALED = "of about 1 (minus their mean, over their standard deviation)"
_log = logging.getLogger("nbvae.training")

History = dict[str, list[float]]
_TERMS = ("loss", "distortion", "rate")


class Trainee(Protocol):
    """What the loop trains: `stacking.Alone`, `Broadcast` or `Mapped`."""

    @property
    def state(self) -> list[Tensor]: ...

    parameters: list[Any]
    companion_parameters: list[Any]

    objective: Any
    modules: Any

    def call(self, function: Callable[..., Any], x: Tensor, streams: Streams | None = None) -> Any: ...


def losses(
    model: Any, objective: Any, x: Tensor, companion: nn.Module | None, step: int, reference: Tensor, calibrated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (*models), and distortion and rate (*models, batch), of one step.

    Raises `ValueError` where an objective returns something else than `objectives.Loss` of these shapes.
    """
    if calibrated:
        calibration.update(model, x)
    beside = {} if companion is None else {"companion": companion}
    loss = objective(model, x, step=step, reference=reference, **beside)
    if not isinstance(loss, Loss) or not isinstance(loss.terms, tuple) or len(loss.terms) != 2:
        raise ValueError(
            f"an objective returns objectives.Loss(total, Terms(distortion, rate)), but {_name(objective)} does not"
        )
    total, (distortion, rate) = loss
    if not all(isinstance(each, Tensor) for each in (total, distortion, rate)):
        raise ValueError(f"an objective's total, distortion and rate are tensors, but not all that {_name(objective)} gives")
    batch = x.shape[-1 - len(reference.shape[1:])]
    if rate.shape != distortion.shape or rate.shape[-1:] != (batch,) or total.shape not in (rate.shape, rate.shape[:-1]):
        raise ValueError(
            f"an objective's terms are ({batch},) for a batch of {batch}, its total is () or ({batch},); {_name(objective)} "
            f"has distortion {tuple(distortion.shape)}, rate {tuple(rate.shape)} and total {tuple(total.shape)}"
        )
    return total.mean(-1) if total.dim() == rate.dim() else total, distortion, rate


def companion_losses(model: Any, objective: Any, x: Tensor, companion: nn.Module, reference: Tensor) -> Tensor:
    """What the network beside the model minimises, (*models)."""
    return objective.companion_loss(companion, model, x, reference)


def _name(objective: Any) -> str:
    return getattr(objective, "__name__", type(objective).__name__)


def train(
    trainee: Trainee,
    dataset: data.Dataset,
    config: TrainConfig,
    streams: Streams,
    calibrated: bool,
    stop: threading.Event | None = None,
    on_epoch: Callable[[int, History], Any] | None = None,
) -> list[tuple[History, str | None]]:
    """Train; return the history and, for a model that diverged, the reason: for each model of a stack, or for the one.

    `calibrated`: whether σ is set to its best value at each batch. `stop` ends the loop at its next step.
    """
    training = dataset.train.to(streams.place)
    batches = range(0, len(training), config.batch_size)
    optimiser = OPTIMIZERS[config.optimizer](trainee.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = _schedule(optimiser, config, config.epochs * len(batches))
    second = trainee.companion_parameters
    second = torch.optim.Adam(second, lr=trainee.objective.lr, fused=True) if second else None
    record, step = _Record(trainee, config), 0
    for epoch in tqdm(range(config.epochs), desc="training", unit="epoch", leave=False, disable=not watched()):
        orders = streams.permutations(len(training))
        kept = []
        for step, start in enumerate(batches, epoch * len(batches)):
            if stop is not None and stop.is_set():
                raise InterruptedError("the sweep was interrupted")
            x = streams.batch(dataset, training, [order[start : start + config.batch_size] for order in orders])
            of_step = functools.partial(losses, step=step, reference=training, calibrated=calibrated)
            total, distortion, rate = trainee.call(of_step, x)
            for parameter in trainee.parameters:  # as `zero_grad`, without its records for a profiler
                parameter.grad = None
            total.sum().backward()
            if config.clip is not None:
                _clip(trainee.parameters, config.clip, total.dim())
            optimiser.step()
            if second is not None:
                second.zero_grad()  # the objective's gradients went through the companion too
                trainee.call(functools.partial(companion_losses, reference=training), x).sum().backward()
                second.step()
            if schedule is not None:
                schedule.step()
            kept.append((total.detach(), distortion.detach(), rate.detach()))
            if step == 0 and not total.isfinite().any():  # no reason to go on until the end of the epoch
                break
        going_on = record.close_epoch(kept, training)
        if going_on and config.validate_every and (epoch + 1) % config.validate_every == 0:
            going_on = record.close_validation(_validated(trainee, dataset, config, streams, step, training))
        if epoch == 0 and going_on and (reach := training.abs().max().item()) > _WIDE:
            _log.warning("the data reach %.4g: training goes better on data %s", reach, _SCALED)
        if on_epoch is not None:
            with torch.random.fork_rng(devices=[streams.place] if streams.place.type == "cuda" else []):
                going_on = on_epoch(epoch, record.results()[0][0]) is not True and going_on
            for module in trainee.modules:  # whatever was measured in between
                module.train()
        if not going_on:
            break
    record.finish()
    return record.results()


@torch.no_grad()
def _validated(
    trainee: Trainee, dataset: data.Dataset, config: TrainConfig, streams: Streams, step: int, training: Tensor
) -> Tensor:
    """Means of loss, distortion and rate over the validation split, (3, *models), in evaluation mode, at the same noise."""
    fresh = streams.anew()
    alone = seeded(config.seed, streams.place) if streams.is_global else contextlib.nullcontext()
    parts = dataset.validation.split(min(config.batch_size, len(training)))
    rows = []
    with measuring(trainee.modules), alone:
        for part in parts:
            of_part = functools.partial(losses, step=step, reference=training, calibrated=False)
            total, *terms = trainee.call(of_part, fresh.spread(part.to(streams.place)), fresh)
            rows.append(torch.stack([total, *(each.mean(-1) for each in terms)]))
    sizes = torch.tensor([len(part) for part in parts], dtype=rows[0].dtype, device=streams.place)
    return torch.tensordot(sizes / sizes.sum(), torch.stack(rows), 1)


def _clip(parameters: Sequence[Tensor], most: float, leading: int) -> None:
    """Scale the gradients of each model (`leading` dimensions count them) down to the norm `most`, where it is larger."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.flatten(leading).square().sum(-1) for gradient in gradients]).sum(0).sqrt()
    scale = (most / norm).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view((*scale.shape, *[1] * (gradient.dim() - leading))))


class _Record:
    """History and last good weights of one model, or of each model of a stack."""

    def __init__(self, trainee: Trainee, config: TrainConfig):
        self.trainee, self.parameters, self.patience = trainee, trainee.parameters, config.patience
        self.backup = [value.detach().clone() for value in trainee.state]
        self.good: Tensor | None = None  # () or (models,): those without a problem so far
        self.epochs: list[list[list[float]]] = []  # epoch, model, (loss, distortion, rate)
        self.validations: list[tuple[int, list[list[float]]]] = []  # after how many epochs; model, (loss, distortion, rate)
        self.problems: dict[int, tuple[int, str]] = {}  # model: its bad epoch, and what happened
        self.stopped: dict[int, int] = {}  # model: the epochs after which it was stopped
        self.best: Tensor | None = None  # the smallest validation loss of each, with the state that had it
        self.best_state: list[Tensor] = []
        self.waiting = torch.zeros(())

    @torch.no_grad()
    def close_epoch(self, losses: list[tuple[Tensor, Tensor, Tensor]], data: Tensor) -> bool:
        """Take the epoch's (total, distortion, rate) of each step; put bad models back. Whether any model is still trained.

        With `close_validation` the only place of the loop where values leave the device.
        """
        totals, distortions, rates = zip(*losses, strict=True)
        total = torch.stack(totals)
        sizes = torch.tensor([rate.shape[-1] for rate in rates], device=total.device, dtype=total.dtype)
        # Batches may be unequal: weigh by examples, or the last small batch counts too much.
        means = [
            torch.tensordot(sizes, total, 1) / sizes.sum(),
            *(torch.cat(x, -1).mean(-1) for x in (distortions, rates)),
        ]
        self.epochs.append(torch.stack(means).reshape(3, -1).T.tolist())

        steps = torch.stack([total, *(torch.stack([each.mean(-1) for each in x]) for x in (distortions, rates))])
        good = steps.isfinite().all(0).all(0)
        for parameter in self.parameters:  # the last step may have spoilt the weights without a loss to show for it
            good = good & parameter.flatten(good.dim()).sum(-1).isfinite()
        self.good = good = good if self.good is None else self.good & good
        if not good.all():
            self._copy(self.backup, self.trainee.state, good)
        for value, backup in zip(self.trainee.state, self.backup, strict=True):
            backup.copy_(value)
        for index, ok in enumerate(good.reshape(-1).tolist()):
            if not ok and index not in self.problems and index not in self.stopped:
                epoch = len(self.epochs) - 1
                self.problems[index] = epoch, _problem(steps.reshape(3, len(sizes), -1)[..., index], epoch, data)
        return self._any_left()

    @torch.no_grad()
    def close_validation(self, means: Float[Tensor, "3 *models"]) -> bool:
        """Take loss, distortion and rate on the validation split. Whether any model is still trained."""
        self.validations.append((len(self.epochs), means.reshape(3, -1).T.tolist()))
        if self.patience is None:
            return True
        loss = means[0].nan_to_num(nan=math.inf)
        if self.best is None:
            self.best, self.best_state = loss.clone(), [value.detach().clone() for value in self.trainee.state]
            self.waiting = torch.zeros_like(loss)
            return True
        active = torch.tensor(
            [i not in {*self.stopped, *self.problems} for i in range(loss.numel())], device=loss.device
        ).reshape(loss.shape)
        better = (loss < self.best) & active
        self._copy(self.trainee.state, self.best_state, ~better)
        self.best = torch.where(better, loss, self.best)
        self.waiting = torch.where(better, 0.0, self.waiting + 1)
        for index, waited in enumerate(self.waiting.reshape(-1).tolist()):
            if waited >= self.patience and index not in self.stopped and index not in self.problems:
                self.stopped[index] = len(self.epochs)
        return self._any_left()

    @torch.no_grad()
    def finish(self) -> None:
        """Give each model the state of its best validation, if training was to be stopped by it."""
        if self.best_state:
            for value, best in zip(self.trainee.state, self.best_state, strict=True):
                value.copy_(best)

    def results(self) -> list[tuple[History, str | None]]:
        """The history up to the last good epoch and the problem, if any, of each model."""
        results = []
        for index in range(len(self.epochs[0])):
            last, problem = self.problems.get(index, (len(self.epochs), None))
            last = min(last, self.stopped.get(index, last))
            rows = [epoch[index] for epoch in self.epochs[:last]]
            history = {name: [row[i] for row in rows] for i, name in enumerate(_TERMS)}
            if self.validations:
                seen = [(count, models[index]) for count, models in self.validations if count <= last]
                history |= {f"validation_{name}": [row[i] for _, row in seen] for i, name in enumerate(_TERMS)}
                history["validation_epoch"] = [float(count - 1) for count, _ in seen]
            results.append((history, problem))
        return results

    def _any_left(self) -> bool:
        return len({*self.problems, *self.stopped}) < len(self.epochs[0])

    def _copy(self, source: list[Tensor], target: list[Tensor], kept: Tensor) -> None:
        """Copy `source` to `target` for the models that are not `kept`."""
        for one, other in zip(source, target, strict=True):
            other.copy_(torch.where(kept.view((*kept.shape, *[1] * (other.dim() - kept.dim()))), other, one))


def _problem(steps: Tensor, epoch: int, data: Tensor) -> str:
    """One line on a diverged model; `steps` (3, steps) are its loss, distortion and rate in the epoch that went wrong."""
    bad = (~steps.isfinite().all(0)).nonzero().flatten().tolist()
    first = bad[0] if bad else steps.shape[1]
    count = epoch * steps.shape[1] + first
    reach = data.abs().max().item()
    scale = f"scale the data, which reach {reach:.4g}, to about 1 (minus their mean, over their standard deviation)"
    if epoch == first == 0:
        cure = scale if reach > _WIDE else "look at what the model makes of the first batch"
        return f"the loss is not finite at step 0, before anything was trained: {cure}"
    what = f"the loss is not finite at step {count}" if bad else f"the weights are not finite after step {count - 1}"
    last = "the epoch's first step"
    if first > 0:
        _, distortion, rate = steps[:, first - 1].tolist()
        last = f"the step before had distortion {distortion:.6g} and rate {rate:.6g} nats"
    kept = f"the end of epoch {epoch - 1}" if epoch else "the start"
    cure = "try a smaller lr" + (f", or {scale}" if reach > _WIDE else "")
    return f"{what} (epoch {epoch}, both from 0); {last}; the model keeps its state of {kept}; {cure}"


def _schedule(optimiser: torch.optim.Optimizer, config: TrainConfig, steps: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    if config.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=config.lr, total_steps=steps)
    return None


def watched() -> bool:
    """Whether a person looks at the output: a terminal, or a notebook that can be typed into. papermill's cannot.

    >>> isinstance(watched(), bool)
    True
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(getattr(shell, "kernel", None), "_allow_stdin", sys.stderr.isatty())
