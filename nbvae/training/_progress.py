"""How far a training has come: all that decides how it goes on, which is what a checkpoint holds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae._randomness import Streams
from nbvae.training._config import TrainConfig

# Data that reach beyond this are told so, and named as the likely cause where the very first loss is not finite.
WIDE = 30.0

History = dict[str, list[float]]
Tensors = dict[str, Tensor]
State = tuple[Tensors, dict[str, Any]]  # tensors, and what JSON can hold
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

    def tensors(self) -> Tensors: ...

    def put(self, tensors: Tensors) -> None: ...


@dataclass
class Progress:
    """A training between two steps.

    - `trainee`, `streams`, `optimisers`, `schedule`, `record`: what is trained and by what.
    - `epoch`: the one that is begun next or, where `orders` are drawn, has been begun.
    - `orders`: each stream's order of the examples in this epoch; none between two epochs.
    - `kept`: total, distortion and rate of the epoch's steps so far.
    - `over`: whether no model is trained any more.
    """

    trainee: Trainee
    streams: Streams
    optimisers: list[torch.optim.Optimizer]
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    record: "Record"
    epoch: int = 0
    orders: list[Tensor] = field(default_factory=list)
    kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    over: bool = False

    def close_epoch(self, over: bool) -> None:
        """The next epoch is the one to begin."""
        self.epoch, self.orders, self.kept, self.over = self.epoch + 1, [], [], over

    def state(self) -> State:
        """All of it. The tensors are copies on the CPU."""
        tensors, said = self.record.state(between=not self.orders)
        tensors |= {f"trainee.{name}": value for name, value in self.trainee.tensors().items()}
        tensors |= _numbered("stream", self.streams.states()) | _numbered("order", self.orders)
        for i, optimiser in enumerate(self.optimisers):
            group = optimiser.param_groups[0]
            said[f"optimiser.{i}"] = {name: value for name, value in group.items() if name != "params"}
            for j, parameter in enumerate(group["params"]):
                known = optimiser.state.get(parameter, {}).items()
                tensors |= {f"optimiser.{i}.{j}.{name}": value for name, value in known if isinstance(value, Tensor)}
        if self.kept:
            totals, distortions, rates = zip(*self.kept, strict=True)
            said["sizes"] = [rate.shape[-1] for rate in rates]
            tensors |= {"totals": torch.stack(totals), "distortions": torch.cat(distortions, -1), "rates": torch.cat(rates, -1)}
        said |= {"epoch": self.epoch, "over": self.over, "schedule": self.schedule and self.schedule.state_dict()}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}, said

    @torch.no_grad()
    def go_on(self, tensors: Tensors, said: dict[str, Any]) -> None:
        """Be where `state` was told, in a training that was begun in the same way."""
        place = self.streams.place
        self.trainee.put(
            {name.removeprefix("trainee."): value for name, value in tensors.items() if name.startswith("trainee.")}
        )
        self.record.go_on(tensors, said)
        self.streams.go_on(_listed("stream", tensors))
        self.orders = [order.to(place) for order in _listed("order", tensors)]
        for i, optimiser in enumerate(self.optimisers):
            settings = said[f"optimiser.{i}"].items()
            optimiser.param_groups[0].update({name: tuple(each) if isinstance(each, list) else each for name, each in settings})
            for j, parameter in enumerate(optimiser.param_groups[0]["params"]):
                start = f"optimiser.{i}.{j}."
                known = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
                # In memory as the parameter is, transposed or not: a fused step takes them in that order.
                optimiser.state[parameter] = {
                    name: (
                        torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value.to(place)
                    ).copy_(value)
                    for name, value in known.items()
                }
        if "sizes" in said:
            parts = (tensors[name].to(place).split(said["sizes"], -1) for name in ("distortions", "rates"))
            parts = ([each.contiguous() for each in part] for part in parts)
            self.kept = list(zip(tensors["totals"].to(place).unbind(), *parts, strict=True))
        if self.schedule is not None:
            self.schedule.load_state_dict(said["schedule"])
        self.epoch, self.over = said["epoch"], said["over"]


def _numbered(name: str, tensors: Sequence[Tensor]) -> Tensors:
    return {f"{name}.{i}": value for i, value in enumerate(tensors)}


def _listed(name: str, tensors: Tensors) -> list[Tensor]:
    return [tensors[f"{name}.{i}"] for i in range(sum(each.startswith(f"{name}.") for each in tensors))]


class Record:
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
            good = good & parameter.unsqueeze(-1).flatten(good.dim()).sum(-1).isfinite()  # single numbers too
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

    def state(self, between: bool) -> State:
        """What is known. `between` epochs the last good weights are the models' own, and left out."""
        tensors = {"waiting": self.waiting, "epochs": torch.tensor(self.epochs, dtype=torch.float64)}
        tensors["validations"] = torch.tensor([means for _, means in self.validations], dtype=torch.float64)
        if not (between and self._is_backed_up()):
            tensors |= _numbered("backup", self.backup)
        tensors |= _numbered("best_state", self.best_state)
        tensors |= {name: value for name, value in (("good", self.good), ("best", self.best)) if value is not None}
        said = {
            "validated": [count for count, _ in self.validations],
            "problems": list(self.problems.items()),
            "stopped": list(self.stopped.items()),
        }
        return tensors, said

    @torch.no_grad()
    def go_on(self, tensors: Tensors, said: dict[str, Any]) -> None:
        """Know what `state` told, after the models have their weights of then."""
        for name, needed in (("backup", True), ("best_state", "best" in tensors)):
            own = [value.detach().clone() for value in self.trainee.state] if needed else []
            for value, saved in zip(own, _listed(name, tensors), strict=False):  # of `backup` there may be none
                value.copy_(saved)
            setattr(self, name, own)
        place = self.trainee.state[0].device
        self.good, self.best = (tensors[name].to(place) if name in tensors else None for name in ("good", "best"))
        self.waiting = tensors["waiting"].to(place)
        self.epochs = tensors["epochs"].tolist()
        self.validations = list(zip(said["validated"], tensors["validations"].tolist(), strict=True))
        self.problems = {index: (epoch, problem) for index, (epoch, problem) in said["problems"]}
        self.stopped = dict(said["stopped"])

    def _is_backed_up(self) -> bool:
        """Whether the models, after an epoch, are their last good ones: but for buffers that measuring may move, they are."""
        both = zip(self.trainee.state, self.backup, strict=True)
        return all(value.requires_grad or torch.equal(value, backup) for value, backup in both)

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
        cure = scale if reach > WIDE else "look at what the model makes of the first batch"
        return f"the loss is not finite at step 0, before anything was trained: {cure}"
    what = f"the loss is not finite at step {count}" if bad else f"the weights are not finite after step {count - 1}"
    last = "the epoch's first step"
    if first > 0:
        _, distortion, rate = steps[:, first - 1].tolist()
        last = f"the step before had distortion {distortion:.6g} and rate {rate:.6g} nats"
    kept = f"the end of epoch {epoch - 1}" if epoch else "the start"
    cure = "try a smaller lr" + (f", or {scale}" if reach > WIDE else "")
    return f"{what} (epoch {epoch}, both from 0); {last}; the model keeps its state of {kept}; {cure}"
