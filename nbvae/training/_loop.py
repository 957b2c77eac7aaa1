"""The training loop: one model, or a stack of them."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nbvae import data
from nbvae._randomness import Streams
from nbvae.training import calibration
from nbvae.training._config import OPTIMIZERS, TrainConfig


def _loop(
    model: nn.Module,
    objective: Any,
    dataset: data.Dataset,
    config: TrainConfig,
    streams: Streams,
    companion: nn.Module | None = None,
    stop: threading.Event | None = None,
) -> list[tuple[dict[str, list[float]], str | None]]:
    """Train; return the history and, for a model that diverged, the reason: for each model of a stack, or for the one."""
    train = dataset.train.to(streams.place)
    batches = range(0, len(train), config.batch_size)
    parameters = list(model.parameters())
    optimiser = OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = _schedule(optimiser, config, config.epochs * len(batches))
    beside = {} if companion is None else {"companion": companion}
    second = None if companion is None else torch.optim.Adam(companion.parameters(), lr=objective.lr, fused=True)
    record = _Record([*parameters, *model.buffers()])
    calibrated = getattr(calibration.gaussian(model), "mode", None) == "optimal"
    for epoch in tqdm(range(config.epochs), desc="training", unit="epoch", leave=False, disable=not watched()):
        orders = streams.permutations(len(train))
        losses = []
        for step, start in enumerate(batches, epoch * len(batches)):
            if stop is not None and stop.is_set():
                raise InterruptedError("the sweep was interrupted")
            x = streams.batch(dataset, train, [order[start : start + config.batch_size] for order in orders])
            if calibrated:
                calibration.update(model, x)
            total, terms = objective(model, x, step=step, reference=train, **beside)
            optimiser.zero_grad()
            total.sum().backward()
            if config.clip is not None:
                _clip(parameters, config.clip, total.dim())
            optimiser.step()
            if second is not None:
                second.zero_grad()  # the objective's gradients went through the companion too
                objective.companion_loss(companion, model, x, train).sum().backward()
                second.step()
            if schedule is not None:
                schedule.step()
            losses.append((total.detach(), terms.distortion.detach(), terms.rate.detach()))
        if not record.close_epoch(losses):
            break
    return record.results()


def _clip(parameters: list[nn.Parameter], most: float, leading: int) -> None:
    """Scale the gradients of each model (`leading` dimensions count them) down to the norm `most`, where it is larger."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.flatten(leading).square().sum(-1) for gradient in gradients]).sum(0).sqrt()
    scale = (most / norm).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(*scale.shape, *[1] * (gradient.dim() - leading)))


class _Record:
    """History and last good weights of one model, or of each model of a stack."""

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = parameters
        self.backup = [parameter.detach().clone() for parameter in parameters]
        self.good: Tensor | None = None  # () or (models,): those without a problem so far
        self.epochs: list[list[list[float]]] = []  # epoch, model, (loss, distortion, rate)
        self.problems: dict[int, tuple[int, str]] = {}  # model: its bad epoch, and what happened

    @torch.no_grad()
    def close_epoch(self, losses: list[tuple[Tensor, Tensor, Tensor]]) -> bool:
        """Take the epoch's (total, distortion, rate) of each step; put bad models back. Whether any model is still good.

        The only place of the loop where values leave the device.
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
            for parameter, backup in zip(self.parameters, self.backup, strict=True):
                parameter.copy_(torch.where(good.view((*good.shape, *[1] * (parameter.dim() - good.dim()))), parameter, backup))
        for parameter, backup in zip(self.parameters, self.backup, strict=True):
            backup.copy_(parameter)
        for index, ok in enumerate(good.reshape(-1).tolist()):
            if not ok and index not in self.problems:
                epoch = len(self.epochs) - 1
                self.problems[index] = epoch, _problem(steps.reshape(3, len(sizes), -1)[..., index], epoch)
        return len(self.problems) < good.numel()

    def results(self) -> list[tuple[dict[str, list[float]], str | None]]:
        """The history up to the last good epoch and the problem, if any, of each model."""
        results = []
        for index in range(len(self.epochs[0])):
            good_epochs, problem = self.problems.get(index, (len(self.epochs), None))
            rows = [epoch[index] for epoch in self.epochs[:good_epochs]]
            names = ("loss", "distortion", "rate")
            results.append(({name: [row[i] for row in rows] for i, name in enumerate(names)}, problem))
        return results


def _problem(steps: Tensor, epoch: int) -> str:
    """One line on a diverged model; `steps` (3, steps) are its loss, distortion and rate in the epoch that went wrong."""
    bad = (~steps.isfinite().all(0)).nonzero().flatten().tolist()
    first = bad[0] if bad else steps.shape[1]
    count = epoch * steps.shape[1] + first
    what = f"the loss is not finite at step {count}" if bad else f"the weights are not finite after step {count - 1}"
    last = "the epoch's first step"
    if first > 0:
        _, distortion, rate = steps[:, first - 1].tolist()
        last = f"the step before had distortion {distortion:.6g} and rate {rate:.6g} nats"
    kept = f"the end of epoch {epoch - 1}" if epoch else "the start"
    return f"{what} (epoch {epoch}, both from 0); {last}; the model keeps its state of {kept}; try a smaller lr"


def _schedule(optimiser: torch.optim.Optimizer, config: TrainConfig, steps: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    if config.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=config.lr, total_steps=steps)
    return None


def watched() -> bool:
    """Whether a person looks at the output: a terminal, or a notebook that can be typed into. papermill's cannot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(getattr(shell, "kernel", None), "_allow_stdin", sys.stderr.isatty())
