"""`sweep`: train many models at once."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from nbvae import checks, data, objectives
from nbvae._randomness import Streams, seeded
from nbvae.training import calibration, stacking
from nbvae.training._config import TrainConfig, device
from nbvae.training._fit import Diverged, _accept, _companion
from nbvae.training._loop import _loop
from nbvae.training.store import Run

# Weights that one group of a sweep may hold on a CPU. Beyond this the optimiser's state no longer fits the cache, and a larger
# stack is slower per model than two smaller ones (benchmarks/speed.py).
_GROUP = 8_000_000


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
        streams = Streams([grid[index][2] for index in group], place)
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
