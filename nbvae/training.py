"""Training: `fit` for one model, `sweep` for many at once."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nbvae import calibration, checks, data, objectives, stacking
from nbvae.runs import DEVICES, OPTIMIZERS, SCHEDULES, Run, TrainConfig, device, load
from nbvae.stacking import seeded

__all__ = [
    "DEVICES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Diverged",
    "Run",
    "TrainConfig",
    "device",
    "fit",
    "load",
    "seeded",
    "sweep",
    "watched",
]

# Weights that one group of a sweep may hold on a CPU. Beyond this the optimiser's state no longer fits the cache, and a larger
# stack is slower per model than two smaller ones (benchmarks/speed.py).
_GROUP = 8_000_000


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
        [(history, problem)] = _loop(model, objective, dataset, config, stacking.Streams([None], place), companion)
    calibration.settle(model, objective, dataset, config.seed)
    run = Run(model, objective, config, history, time.perf_counter() - start)
    if problem:
        raise Diverged(problem, [run])
    return run


def sweep(
    make: Callable[..., nn.Module],
    dataset: data.Dataset,
    betas: Sequence[float],
    objective: str | Callable[[float], Callable[..., objectives.Loss]] = "beta_vae",
    seeds: Sequence[int] = (0,),
    config: TrainConfig = TrainConfig(),
    sigmas: Sequence[float] | None = None,
) -> list[Run]:
    """Train a model for every β, every σ and every seed, all at once; return the runs in that order, seeds innermost.

    `make()` returns a new model (`make(sigma=σ)` where `sigmas` are given), always of one architecture; torch's stream is
    seeded before each call. `objective` is a name in `objectives.NAMED` or a function from β to an objective. Each run equals
    the `fit` of such a model with `config.seed` set to its seed: the same initial weights, batches and noise. A run that
    diverges is put back to its last good epoch while the others go on, and `Diverged` is raised at the end.
    """
    betas = [checks.positive("beta", beta) for beta in checks.listed("betas", betas)]
    seeds = [checks.whole("seed", seed, minimum=0) for seed in checks.listed("seeds", seeds)]
    options = [{}] if sigmas is None else [{"sigma": sigma} for sigma in checks.listed("sigmas", sigmas)]
    build = _by_beta(objective) if isinstance(objective, str) else objective
    place = device(config.device)
    grid = [(build(beta), option, seed) for beta in betas for option in options for seed in seeds]
    made = []
    for _, option, seed in grid:
        with seeded(seed, place):
            made.append(make(**option).to(place))
    _accept(made[0], dataset, grid[0][0])
    for model, (_, _, seed) in zip(made, grid, strict=True):
        calibration.start(model, dataset, seed)

    stop = threading.Event()

    def train(group: range) -> list[tuple[Run, str | None]]:
        start = time.perf_counter()
        members = [made[index] for index in group]
        streams = stacking.Streams([grid[index][2] for index in group], place)
        stacked = stacking.stack(members)
        loss = stacking.stack_numbers([grid[index][0] for index in group], next(stacked.parameters()))
        beside = [each for index in group if (each := _companion(grid[index][0], made[index], grid[index][2])) is not None]
        companion = stacking.stack(beside) if beside else None
        results = _loop(stacking.Together(stacked, streams), loss, dataset, config, streams, companion, stop)
        stacking.unstack(stacked, members)
        for index in group:
            calibration.settle(made[index], grid[index][0], dataset, grid[index][2])
        share = (time.perf_counter() - start) / len(group)
        return [
            (Run(made[index], grid[index][0], replace(config, seed=grid[index][2]), history, share), problem)
            for index, (history, problem) in zip(group, results, strict=True)
        ]

    size = sum(parameter.numel() for parameter in made[0].parameters())
    groups = _groups(len(grid), size, torch.get_num_threads()) if place.type == "cpu" else [range(len(grid))]
    trained = [result for results in _in_threads(train, groups, stop) for result in results]
    runs = [run for run, _ in trained]
    problems = [
        f"{run.objective} {option or ''} seed {seed}: {problem}"
        for (run, problem), (_, option, seed) in zip(trained, grid, strict=True)
        if problem
    ]
    if problems:
        raise Diverged("; ".join(problems), runs)
    return runs


def _groups(count: int, size: int, threads: int) -> list[range]:
    """Models 0 to `count`, of `size` weights each, in equal groups: as many as the cache asks for and the threads fill."""
    number = -(-count * size // _GROUP)
    if number > 1:
        number = min(count, -(-number // threads) * threads)
    return [range(i * count // number, (i + 1) * count // number) for i in range(number)]


def _in_threads(work: Callable[[range], Any], groups: list[range], stop: threading.Event) -> list[Any]:
    """`work` on each group; on several at once, one core for each, where there are several.

    Two groups side by side beat one after the other on all cores: matrix products of one fill the time in which the
    optimiser of the other waits for memory. Interrupted, `stop` is set and the threads end at their next step.
    """
    threads = torch.get_num_threads()
    if len(groups) == 1 or threads == 1:
        return [work(group) for group in groups]
    pool = ThreadPoolExecutor(min(threads, len(groups)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(work, groups))
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _by_beta(name: str) -> Callable[[float], Callable[..., objectives.Loss]]:
    checks.choice("objective", name, objectives.NAMED)
    kind = objectives.NAMED[name]
    if "beta" not in {field.name for field in fields(kind)}:
        hint = ": give betas=[1.0] and objective=lambda _: objectives.MultiBeta()" if kind is objectives.MultiBeta else ""
        raise ValueError(f"objective={name!r} has no beta to sweep over{hint}")
    return lambda beta: kind(beta=beta)


def _loop(
    model: nn.Module,
    objective: Any,
    dataset: data.Dataset,
    config: TrainConfig,
    streams: stacking.Streams,
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


def _companion(objective: Any, model: Any, seed: int) -> nn.Module | None:
    """The network that an objective trains beside the model (FactorVAE's discriminator), if it has one."""
    make = getattr(objective, "companion", None)
    prior = model.prior().mean if make else torch.zeros(())
    with seeded(seed, prior.device):
        made = make(prior.shape[-1]) if make else None
    return made if made is None else made.to(prior)


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


def watched() -> bool:
    """Whether a person looks at the output: a terminal, or a notebook that can be typed into. papermill's cannot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(getattr(shell, "kernel", None), "_allow_stdin", sys.stderr.isatty())
