"""`sweep`: train many models at once."""

import itertools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from nbvae import checks, data
from nbvae._randomness import Streams, seeded
from nbvae._sameness import same
from nbvae.objectives import NAMED, Loss
from nbvae.training import _loop, calibration, mapping, stacking
from nbvae.training._checkpoint import Stop
from nbvae.training._config import TrainConfig, device
from nbvae.training._fit import Diverged, Objective, accept, accept_config, accept_data, companion_of, made, train_one, watch_of
from nbvae.training._keeping import Found, Session, Store
from nbvae.training._key import key_of_stack
from nbvae.training._writing import Unusable
from nbvae.training.store import Run

# Weights that one group of a sweep may hold on a CPU. Beyond this the optimiser's state no longer fits the cache, and a larger
# stack is slower per model than two smaller ones (benchmarks/speed.py).
_GROUP = 8_000_000
_log = logging.getLogger("nbvae.training")


def sweep(
    make: Callable[..., nn.Module],
    dataset: data.Dataset,
    betas: Sequence[float] | None = None,
    objective: str | Callable[[float], Callable[..., Loss]] = "beta_vae",
    seeds: Sequence[int] = (0,),
    config: TrainConfig = TrainConfig(),
    sigmas: Sequence[float] | None = None,
    objectives: Sequence[Objective] | None = None,
    store: Store | None = None,
) -> list[Run]:
    """Train a model for every objective, every σ and every seed, all at once; return the runs in that order, seeds innermost.

    - `make`: a function without arguments that returns a new model; it is called as `make(sigma=σ)` where `sigmas` are given.
      Torch's stream is seeded before each call.
    - `dataset`, `config`: as for `fit`; `config.seed` is replaced by each of `seeds`.
    - `objectives`: what to minimise, each as for `fit`. Or in short
    - `betas`: the βs of one objective, which is `objective`, a name in `objectives.NAMED` or a function from β to an objective.
    - `seeds`: of initial weights, batches and noise.
    - `sigmas`: standard deviations of a Gaussian decoder, each given to `make`.
    - `store`: where runs are kept (`Store`), under the keys that they have as fits. Those that are there are loaded, and the
      others trained together. Models that are trained as one share a checkpoint, and go on together, as if they had not been
      interrupted, if the same call is made again. Trained with others, a model differs by rounding.

    Each run equals the `fit` of such a model with `config.seed` set to its seed: the same initial weights, batches and noise.
    Models of one architecture are trained as one where their objectives differ in numbers only, and where two steps of the
    stack are what two steps of its members are. Where they are not, as for a model that draws random numbers of its own, the
    fits are run one after the other, after one line in the log "nbvae.training" that says why.

    A run that diverges is put back to its last good epoch while the others go on, and `Diverged` is raised at the end.

    >>> from nbvae import data, models, objectives, training
    >>> ds = data.load("digits")
    >>> pair = [objectives.BetaVAE(0.1), objectives.BetaVAE(1.0)]
    >>> config = training.TrainConfig(epochs=1)
    >>> runs = training.sweep(lambda: models.VAE(ds.shape, 2), ds, objectives=pair, seeds=(0, 1), config=config)
    >>> [(run.objective.beta, run.config.seed) for run in runs]
    [(0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1)]
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(
            f"make must be a function that returns a new model, as lambda: models.VAE(...), got {checks.short(make)}"
        )
    accept_data(dataset)
    accept_config(config)
    chosen = _objectives(betas, objective, objectives)
    seeds = [checks.seed("seed", seed) for seed in checks.listed("seeds", seeds)]
    options = [{}] if sigmas is None else [{"sigma": sigma} for sigma in checks.listed("sigmas", sigmas)]
    if reason := checks.not_callable_with(make, **options[0]):
        raise ValueError(f"make is called as make({', '.join(f'{name}=…' for name in options[0])}), and cannot be: {reason}")
    grid = list(itertools.product(chosen, options, seeds))
    place, cells = device(config.device), []
    with Session(store, config, len(grid)) as session:
        for each, option, seed in grid:
            with seeded(seed, place):
                cells.append(_Cell(make(**option), each, option, replace(config, seed=seed)))
        groups = _alike(cells)
        for cell in cells:  # before anything looks at the models
            cell.key = session.key(cell.model, dataset, cell.objective, cell.config)
        for group in groups:  # the data are checked once for each architecture
            accept(group[0].model, dataset, group[0].objective, config)
        for cell in cells:
            cell.found = session.find(cell.key)
        _run(groups, cells, dataset, place, session)
    return _finished(cells)


def _run(
    groups: list[list["_Cell"]], cells: list["_Cell"], dataset: data.Dataset, place: torch.device, session: Session
) -> None:
    """Give each cell its run: trained with others, trained alone, or found."""
    reasons = {_shared([cell.model for cell in cells])}
    if len(groups) == len(cells) > 1:
        reasons.add("they differ in more than numbers")
    parts = [part for group in groups for part in _parts(group, place)]
    left = [group for group in groups if not all(cell.found for cell in group)]
    for cell in itertools.chain(*left):
        cell.model.to(place).train()
        calibration.start(cell.model, dataset, cell.config.seed)
    with warnings.catch_warnings():  # torch advises its own developers where a mapped operation is slow
        warnings.filterwarnings("ignore", message="There is a performance drop")
        stacks: list[_Stack] = []
        for group in left if reasons == {None} else []:
            some, reason = _stacks(group, dataset, place)
            stacks += [each for stack in some for each in _unfinished(stack, session)]
            reasons.add(reason)
        reasons |= _train(stacks, dataset, session)
    rest = [cell for cell in cells if not (cell.run or cell.found)]
    if reasons := sorted(reason for reason in reasons if reason):
        _log.warning("%d of %d models are trained one after the other: %s", len(rest), len(cells), "; ".join(reasons))
    for cell in rest:
        cell.found = session.find(cell.key)  # another process may have been here meanwhile
        if not cell.found:
            cell.run, cell.problem = train_one(cell.model, dataset, cell.objective, cell.config, session, cell.key)
    for cell in cells:
        if cell.found:
            cell.run, cell.problem = cell.found.into(cell.model, cell.objective, cell.config)
    for part in parts:
        session.forget(_place(part), [cell.key for cell in part])


@dataclass(eq=False)
class _Cell:
    """One model of the grid, and what became of it."""

    model: nn.Module
    objective: Any
    option: dict[str, Any]
    config: TrainConfig
    key: str = ""
    found: Found | None = None
    run: Run | None = None
    problem: str | None = None


@dataclass(eq=False)
class _Stack:
    """Cells that are trained as one, and the place in a store of all that are to be, those that are finished included."""

    cells: list[_Cell]
    place: str
    trainee: stacking.Broadcast | mapping.Mapped
    streams: Streams
    calibrated: bool


def _objectives(betas: Any, objective: Any, objectives: Any) -> list[Any]:
    """The objectives of a sweep, from its long form or its short one."""
    if (betas is None) == (objectives is None):
        raise ValueError("sweep takes either betas, of one objective, or objectives=[...]")
    if objectives is not None:
        if objective != "beta_vae":
            raise ValueError("objective belongs to betas: put all that are to be trained into objectives")
        return [made(each) for each in checks.listed("objectives", objectives)]
    betas = [checks.positive("beta", beta) for beta in checks.listed("betas", betas)]
    if not isinstance(objective, str):
        if isinstance(objective, nn.Module) or checks.not_callable_with(objective, 1.0):
            raise ValueError(f"objective must be a name or a function from β to an objective, got {checks.short(objective)}")
        try:
            return [made(objective(beta)) for beta in betas]
        except (TypeError, NotImplementedError) as error:
            raise ValueError(f"objective(beta) makes no objective: {checks.short(objective)}: {checks.line(error)}") from None
    checks.choice("objective", objective, NAMED)
    kind = NAMED[objective]
    if "beta" not in {field.name for field in fields(kind)}:
        raise ValueError(f"objective={objective!r} has no beta to sweep over: give objectives=[...] in place of betas")
    return [kind(beta=beta) for beta in betas]


def _alike(cells: list[_Cell]) -> list[list[_Cell]]:
    """The cells in groups that can be trained as one: models of one architecture, objectives that differ in numbers only."""
    groups: list[tuple[Any, list[_Cell]]] = []
    for cell in cells:
        if not isinstance(cell.model, nn.Module):
            raise ValueError(f"make() must return a torch module, got {checks.short(cell.model)}")
        built = stacking.architecture(cell.model)
        for other, group in groups:
            if same(built, other) and stacking.differ_in_numbers(group[0].objective, cell.objective):
                group.append(cell)
                break
        else:
            groups.append((built, [cell]))
    return [group for _, group in groups]


def _shared(models: list[nn.Module]) -> str | None:
    """Why models that hold the same tensors cannot be stacked; `ValueError` where a fit of one would train another."""
    owner: dict[int, int] = {}
    reason = None
    for index, model in enumerate(models):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.numel() and owner.setdefault(tensor.untyped_storage().data_ptr(), index) != index:
                if tensor.requires_grad:
                    raise ValueError(f"make() must return a new model each time, but two of its models share their {name}")
                reason = reason if isinstance(tensor, nn.Parameter) else "their models share buffers"
    return reason


def _parts(cells: list[_Cell], place: torch.device) -> list[list[_Cell]]:
    """The cells of a group in the parts that are trained as one."""
    size = sum(parameter.numel() for parameter in cells[0].model.parameters())
    groups = _groups(len(cells), size, torch.get_num_threads()) if place.type == "cpu" else [range(len(cells))]
    return [[cells[index] for index in group] for group in groups]


def _place(cells: list[_Cell]) -> str:
    """Where a store keeps what it knows of cells that are to be trained as one."""
    return key_of_stack([cell.key for cell in cells])


def _stacks(cells: list[_Cell], dataset: data.Dataset, place: torch.device) -> tuple[list[_Stack], str | None]:
    """The stacks that train these cells, or none and the reason, if one is needed."""
    if len(cells) == 1:
        return [], None
    for cell in cells:
        tensors = stacking.tensors_of(cell.model).values()
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
            return [], "half precision is rounded otherwise in a stack"
        if any(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in tensors):
            return [], "their weights have hooks"
    own = stacking.is_own(cells[0].objective) and all(stacking.broadcasts(cell.model) for cell in cells)
    stacks = []
    for part in _parts(cells, place):
        try:
            stack = _stack(part, stacking.Broadcast if own else mapping.Mapped, _place(part), place)
            reason = None if own else _disagreement(stack, dataset)
        except Exception as error:  # most likely an error of the model or the objective, which its fit will raise
            return [], f"a step of one alone failed ({type(error).__name__}: {checks.line(error)})"
        if reason is not None:
            return [], reason
        stacks.append(stack)
    return stacks, None


def _stack(
    cells: list[_Cell], kind: type[stacking.Broadcast] | type[mapping.Mapped], place: str, where: torch.device
) -> _Stack:
    streams = Streams([cell.config.seed for cell in cells], where)
    beside = [companion_of(cell.objective, cell.model, cell.config.seed) for cell in cells]
    companions = [each for each in beside if each is not None]
    trainee = kind([cell.model for cell in cells], [cell.objective for cell in cells], companions, streams)
    return _Stack(cells, place, trainee, streams, calibration.is_optimal(cells[0].model))


def _unfinished(stack: _Stack, session: Session) -> list[_Stack]:
    """The stack as it was begun, some of whose runs may be there by now; else one of those that are not there."""
    begun = session.begun(stack.place)
    left = [cell for cell in stack.cells if (cell.key in begun if begun else not cell.found)]
    if len(left) == len(stack.cells):
        return [stack]
    return [_stack(left, type(stack.trainee), stack.place, stack.streams.place)] if len(left) > 1 else []


def _disagreement(stack: _Stack, dataset: data.Dataset) -> str | None:
    """Why a stack would not train as its members do, if it would not."""
    assert isinstance(stack.trainee, mapping.Mapped)
    reference = dataset.train.to(stack.streams.place)
    with seeded(0, stack.streams.place):
        x = stack.streams.spread(dataset.draw(reference[: stack.cells[0].config.batch_size]))

    def step_of(model: Any, objective: Any, x: Any, companion: Any, step: int) -> list[Any]:
        known = reference.to(x.dtype)
        found = [_loop.losses(model, objective, x, companion, step, known, stack.calibrated)[0]]
        if companion is not None:
            found.append(_loop.companion_losses(model, objective, x, companion, known))
        return found

    return stack.trainee.disagreement(step_of, x, [cell.config.seed for cell in stack.cells])


def _train(stacks: list[_Stack], dataset: data.Dataset, session: Session) -> set[str | None]:
    """Train the stacks and give their cells their runs; those of a stack that fails get none. The reasons for failures."""
    if not stacks:
        return set()
    place = stacks[0].streams.place
    stream = threading.Lock()  # torch's own stream is moved, and looked at, by one thread at a time
    before = mapping.random_states(place)

    def work(stack: _Stack) -> str | None:
        start, mapped = time.perf_counter(), isinstance(stack.trainee, mapping.Mapped)
        if known := session.refused(stack.place):
            return known

        def drawn() -> str | None:
            if not mapped:
                return None
            with stream:
                return mapping.DRAWS if mapping.random_states(place) != before else None

        def watch() -> Callable[[], str | None]:
            of_objective = watch_of([], stack.cells[0].objective)

            def unfit() -> str | None:
                if lost := stacking.STATE if changed() else drawn():
                    raise RuntimeError(lost)  # it would be found at the end
                return of_objective()

            return unfit

        keys = [cell.key for cell in stack.cells]
        with stack.trainee.sandbox() as changed, session.pauses(stack.place, keys, watch) as pauses:
            try:
                results = _loop.train(stack.trainee, dataset, session.config, stack.streams, stack.calibrated, pauses)
                reason = stacking.STATE if changed() else None
            except (InterruptedError, Unusable):
                raise
            except Exception as error:
                if not mapped:
                    raise
                results, reason = [], mapping.in_one_line(error)
        if reason := reason or drawn():
            session.refuse(pauses, reason)
            return reason
        with stream:
            seconds = (pauses.seconds + time.perf_counter() - start) / len(stack.cells)
            stack.trainee.write()
            for cell, (history, cell.problem) in zip(stack.cells, results, strict=True):
                calibration.settle(cell.model, cell.objective, dataset, cell.config.seed)
                cell.run = Run(cell.model, cell.objective, cell.config, history, seconds)
            session.finish(pauses, [(cell.key, cell.run, cell.problem) for cell in stack.cells if cell.run and not cell.found])
        return None

    return {reason for reason in _in_threads(work, stacks, session.stop)}


def _finished(cells: list[_Cell]) -> list[Run]:
    """The runs of the cells, or `Diverged` with them: each problem once, with the models that have it."""
    runs = [cell.run for cell in cells if cell.run]
    problems: dict[str, list[str]] = {}
    for cell in cells:
        if cell.problem:
            label = " ".join([str(cell.objective), *(f"{name}={value:g}" for name, value in cell.option.items())])
            problems.setdefault(cell.problem, []).append(f"{label}, seed {cell.config.seed}")
    if problems:
        each = [
            f"{where[0]}{f' and {len(where) - 1} others' if len(where) > 1 else ''}: {what}" for what, where in problems.items()
        ]
        raise Diverged("; ".join(each), runs)
    return runs


def _groups(count: int, size: int, threads: int) -> list[range]:
    """Models 0 to `count`, of `size` weights each, in equal groups: as many as the cache asks for and the threads fill."""
    number = max(1, -(-count * size // _GROUP))
    if number > 1:
        number = min(count, -(-number // threads) * threads)
    return [range(i * count // number, (i + 1) * count // number) for i in range(number)]


def _in_threads(work: Callable[[Any], Any], groups: list[Any], stop: Stop) -> list[Any]:
    """`work` on each group; on several at once, one core for each, where there are several.

    Two groups side by side beat one after the other on all cores: matrix products of one fill the time in which the
    optimiser of the other waits for memory. Interrupted, the threads are asked to stop and end at their next step.
    """
    threads = torch.get_num_threads()
    if len(groups) == 1 or threads == 1:
        return [work(group) for group in groups]
    pool = ThreadPoolExecutor(min(threads, len(groups)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = [pool.submit(work, group) for group in groups]
        while True:  # with a limit, as a signal that reaches another thread is handled when this one wakes
            done, left = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            if not left or any(future.exception() for future in done):
                return [future.result() for future in (done if left else futures)]
    except BaseException:
        stop.wished = True
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
