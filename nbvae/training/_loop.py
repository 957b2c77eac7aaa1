"""The training loop: one model, or a stack of them."""

import contextlib
import functools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nbvae import checks, data
from nbvae._measuring import measuring
from nbvae._randomness import Streams, seeded
from nbvae._sameness import copied
from nbvae.objectives import Loss
from nbvae.training import calibration
from nbvae.training._checkpoint import Pauses
from nbvae.training._config import OPTIMIZERS, TrainConfig
from nbvae.training._progress import WIDE, History, Progress, Record, Trainee

_SCALED = "of about 1 (minus their mean, over their standard deviation)"
_log = logging.getLogger("nbvae.training")


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
    pauses: Pauses,
    on_epoch: Callable[[int, History], Any] | None = None,
) -> list[tuple[History, str | None]]:
    """Train; return the history and, for a model that diverged, the reason: for each model of a stack, or for the one.

    `calibrated`: whether σ is set to its best value at each batch. `pauses`: where training may end, and go on another time.
    """
    training = dataset.train.to(streams.place)
    batches = range(0, len(training), config.batch_size)
    optimiser = OPTIMIZERS[config.optimizer](trainee.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = _schedule(optimiser, config, config.epochs * len(batches))
    second = trainee.companion_parameters
    second = torch.optim.Adam(second, lr=trainee.objective.lr, fused=True) if second else None
    record, step = Record(trainee, config), 0
    now = Progress(trainee, streams, [each for each in (optimiser, second) if each is not None], schedule, record)
    pauses.begin(now)
    left = range(now.epoch, now.epoch if now.over else config.epochs)
    for epoch in tqdm(left, "training", config.epochs, initial=now.epoch, unit="epoch", leave=False, disable=not watched()):
        if not now.orders:
            now.orders = streams.permutations(len(training))
        for step, start in enumerate(batches[len(now.kept) :], epoch * len(batches) + len(now.kept)):
            pauses.before_step(now)
            x = streams.batch(dataset, training, [order[start : start + config.batch_size] for order in now.orders])
            of_step = functools.partial(losses, step=step, reference=training, calibrated=calibrated)
            try:
                total, distortion, rate = trainee.call(of_step, x)
            except ValueError as error:
                if step == 0 or not _refused_by_torch(error):
                    raise
                now.kept.append(_not_finite(len(x), training))
                break
            if not total.requires_grad:
                raise ValueError(f"the loss that {_name(trainee.objective)} returns has no gradient: some of it was detached")
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
            now.kept.append((total.detach(), distortion.detach().contiguous(), rate.detach().contiguous()))
            if step == 0 and not total.isfinite().any():  # no reason to go on until the end of the epoch
                break
        going_on = record.close_epoch(now.kept, training)
        if going_on and config.validate_every and (epoch + 1) % config.validate_every == 0:
            last = config.epochs * len(batches) - 1
            going_on = record.close_validation(_validated(trainee, dataset, config, streams, last, training))
        pauses.before_end()
        now.close_epoch(over=not going_on)
        if epoch == 0 and going_on and (reach := training.abs().max().item()) > WIDE:
            _log.warning("the data reach %.4g: training goes better on data %s", reach, _SCALED)
        if on_epoch is not None:
            with torch.random.fork_rng(devices=[streams.place] if streams.place.type == "cuda" else []):
                going_on = not _wants_to_stop(on_epoch(epoch, record.results()[0][0])) and going_on
            for module in trainee.modules:  # whatever was measured in between
                module.train()
        whole = now.over or now.epoch == config.epochs
        pauses.after_epoch(now, last=whole or not going_on, whole=whole)
        if not going_on:
            break
    record.finish()
    return record.results()


@torch.no_grad()
def _validated(
    trainee: Trainee, dataset: data.Dataset, config: TrainConfig, streams: Streams, step: int, training: Tensor
) -> Tensor:
    """Means of loss, distortion and rate over the validation split, (3, *models), in evaluation mode, at the same noise.

    The loss is that of the last `step`, so that an objective with a warm-up is one and the same at every validation.
    """
    fresh = streams.anew()
    alone = seeded(config.seed, streams.place) if streams.is_global else contextlib.nullcontext()
    parts = dataset.validation.split(min(config.batch_size, len(training)))
    rows, objective = [], trainee.objective
    with measuring(trainee.modules), alone:
        trainee.objective = copied(objective)  # what an objective counts or adjusts while it is called is of training alone
        try:
            for part in parts:
                of_part = functools.partial(losses, step=step, reference=training, calibrated=False)
                total, *terms = trainee.call(of_part, fresh.spread(part.to(streams.place)), fresh)
                rows.append(torch.stack([total, *(each.mean(-1) for each in terms)]))
        finally:
            trainee.objective = objective
    sizes = torch.tensor([len(part) for part in parts], dtype=rows[0].dtype, device=streams.place)
    return torch.tensordot(sizes / sizes.sum(), torch.stack(rows), 1)


def _wants_to_stop(answer: Any) -> bool:
    """What `on_epoch` has returned: None, or a truth value, of numpy or torch too."""
    value = answer.item() if getattr(answer, "ndim", None) == 0 else answer
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"on_epoch returns True for training to end, else False or nothing; got {checks.short(answer)}")
    return value is True


def _refused_by_torch(error: ValueError) -> bool:
    """Whether a distribution refused its parameters or a value, as torch's do by default where they are not finite."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").startswith("torch.distributions")


def _not_finite(batch: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, distortion and rate of a step that one model could not make."""
    nothing = torch.full((batch,), math.nan, dtype=like.dtype, device=like.device)
    return nothing[0], nothing, nothing


def _clip(parameters: Sequence[Tensor], most: float, leading: int) -> None:
    """Scale the gradients of each model (`leading` dimensions count them) down to the norm `most`, where it is larger."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.unsqueeze(-1).flatten(leading).square().sum(-1) for gradient in gradients]).sum(0).sqrt()
    scale = (most / norm).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view((*scale.shape, *[1] * (gradient.dim() - leading))))


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
