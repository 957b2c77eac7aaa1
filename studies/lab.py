"""Where an experiment's trainings run: in this process, in several or on several machines; what has finished is kept.

A study calls `Lab.map(function, cells)` with a function of its module and the settings of each call. Each result is written
to the lab's folder as it comes, under a hash of the function's name, its settings, the data and the code; what is there is not
computed again, so that an interrupted study goes on where it was.
"""

import contextlib
import contextvars
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nbvae import checks, training
from studies import provenance

_TRIES = 3
_REFUSALS = (ValueError, FileNotFoundError, training.Diverged)  # what is so once is so again
_FORMAT = 1


class Result(NamedTuple):
    """What a call gave, and a note of how it was made: commit, date, seconds, device, threads, cores, versions.

    The seconds are those of its trainings too that were found in the store.
    """

    value: dict[str, Any]
    note: dict[str, Any]


class Lab:
    """Runs the calls of a study and keeps what they give.

    - `folder`: where results and the checkpoints of trainings are kept; None for nowhere.
    - `pool`: a function that makes a `concurrent.futures.Executor` to run the calls in; None for this process, one by one.
    - `device`: the device that calls train on, by name.
    - `watched`: whether a bar shows the progress of the whole grid.

    A call that fails or is lost is tried again, in a new executor, up to three times in all; one that refuses what it is
    given, with a `ValueError` or `FileNotFoundError`, or diverges, is not. What has finished by then is kept. Raises
    `ValueError` for a folder that cannot be written.

    >>> lab = Lab(device="cpu")  # here, one call after the other, and nothing is kept: `load("curve", lab=lab)`
    >>> lab.folder, lab.device
    (None, 'cpu')
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        pool: Callable[[], Executor] | None = None,
        device: str = "auto",
        watched: bool = False,
    ):
        self.folder, self.pool, self.watched = None if folder is None else Path(folder), pool, watched
        self.device = training.device(device).type if device == "auto" else device
        training.device(self.device)
        self.notes: list[dict[str, Any]] = []
        if self.folder is not None:
            try:
                (self.folder / "results").mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder / "results"):
                    pass
            except OSError as error:
                raise ValueError(f"results cannot be written to {self.folder}: {checks.line(error)}") from None

    def map(self, function: Callable[..., dict[str, Any]], cells: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        """What `function(**cell, store=…, device=…)` gives for each cell, in their order.

        - `function`: a function of a module, found again by its name where it runs. It returns a dictionary of what JSON
          can hold, and of numpy arrays. `store` is the folder for `training.Store`, or None.
        - `cells`: settings that JSON can hold. One named `dataset` is a data set's name or a path, whose content counts.
        - `what`: what the calls do, in a word or two, for the bar and for messages.
        """
        module, name = function.__module__, function.__qualname__
        study = module.rpartition(".")[2]
        cells = [json.loads(json.dumps(cell)) for cell in cells]
        keys = [self._key(module, name, cell) for cell in cells]
        found: dict[str, Result] = {key: known for key in dict.fromkeys(keys) if (known := self._known(key))}
        todo = {key: cell for key, cell in zip(keys, cells, strict=True) if key not in found}
        store = None if self.folder is None else str(self.folder.resolve() / "runs")
        bar = tqdm(total=len(set(keys)), initial=len(found), desc=f"{study}: {what}", disable=not self.watched)
        failures: dict[str, BaseException] = {}
        with bar:
            for _ in range(_TRIES):
                failures = {}
                for key, outcome in self._outcomes(
                    {key: (module, name, cell, store, self.device) for key, cell in todo.items()}
                ):
                    if isinstance(outcome, BaseException):
                        failures[key] = outcome
                        continue
                    found[key] = outcome
                    self._keep(key, outcome)
                    bar.update()
                todo = {key: cell for key, cell in todo.items() if key in failures}
                # What is refused once is refused again.
                if not todo or any(isinstance(error, _REFUSALS) for error in failures.values()):
                    break
        if failures:
            key, error = next(iter(failures.items()))
            kept = f"; the {len(found)} others are kept in {self.folder}" if self.folder and found else ""
            if isinstance(error, _REFUSALS):
                raise ValueError(f"{checks.line(error)}{kept}") from error
            where = json.dumps(todo[key], ensure_ascii=False)
            said = f"{type(error).__name__}: {checks.line(error)}"
            raise RuntimeError(f"{study}: {what} failed {_TRIES} times for {where}: {said}{kept}") from error
        self.notes += [{"what": what, "cell": cell, **found[key].note} for key, cell in zip(keys, cells, strict=True)]
        return [found[key].value for key in keys]

    def forget(self, function: Callable[..., dict[str, Any]], cells: Sequence[dict[str, Any]]) -> None:
        """Remove what is kept of the calls of `function` with `cells`, if any, as where a file that they wrote is gone."""
        for cell in cells:
            if self.folder is not None:
                key = self._key(function.__module__, function.__qualname__, json.loads(json.dumps(cell)))
                (self.folder / "results" / f"{key}.npz").unlink(missing_ok=True)

    def _outcomes(self, calls: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Result | BaseException]]:
        """Each call's key with its result or its error, as they come."""
        if self.pool is None:
            for key, call in calls.items():
                try:
                    yield key, work(*call)
                except Exception as error:
                    yield key, error
            return
        with self.pool() as pool:
            futures = {}
            try:
                futures = {pool.submit(work, *call): key for key, call in calls.items()}
                for future in as_completed(futures):
                    try:
                        yield futures[future], future.result()
                    except (Exception, training.Interrupted) as error:  # a worker that was told to stop is a lost one
                        yield futures[future], error
            except BrokenProcessPool as error:  # while calls were handed out
                yield from ((key, error) for key in calls.keys() - {*futures.values()})
            except BaseException:
                workers = list((getattr(pool, "_processes", None) or {}).values())
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.terminate()  # a training ends with a checkpoint; else the pool would wait for its calls
                raise

    def _key(self, module: str, name: str, cell: dict[str, Any]) -> str:
        given = cell.get("dataset")
        path = Path(given).expanduser() if isinstance(given, str) and given.lower().endswith(".npz") else None
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None
        device = "cpu" if self.device == "cpu" else "accelerator"  # rounds otherwise
        said = [_FORMAT, module, name, cell, content, device, provenance.code(module, name)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def _known(self, key: str) -> Result | None:
        """The result that is kept under this key; None if there is none that is whole."""
        if self.folder is None:
            return None
        try:
            packed = np.load(self.folder / "results" / f"{key}.npz", allow_pickle=False)
            arrays = {name: packed[name] for name in packed.files}
            said = json.loads(bytes(arrays.pop("")).decode())
            # Checksums of the zip file cover each array.
            found = Result(said["value"] | arrays, said["note"])
        except Exception:  # absent, or damaged: made again
            return None
        # It was made by this very code, whose hash is in the key: if that is in a commit now, the first to be seen is noted.
        if found.note.get("modified") and (now := provenance.commit())["modified"] is False:
            found.note.update(now)
            self._keep(key, found)
        return found

    def _keep(self, key: str, result: Result) -> None:
        if self.folder is None:
            return
        arrays: dict[str, Any] = {name: value for name, value in result.value.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in result.value.items() if name not in arrays}
        said = json.dumps({"value": rest, "note": result.note}).encode()
        folder = self.folder / "results"
        try:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
                np.savez_compressed(file, **{"": np.frombuffer(said, np.uint8)}, **arrays)
            os.replace(file.name, folder / f"{key}.npz")
        except OSError as error:
            raise RuntimeError(f"a result cannot be written to {folder}: {checks.line(error)}; the others are kept") from None


def work(module: str, name: str, cell: dict[str, Any], store: str | None, device: str) -> Result:
    """One call, wherever it runs."""
    if _worker.get("stopped"):
        raise training.Interrupted("this process was told to stop, and begins nothing")
    start, saved = time.perf_counter(), _saved.set([])
    try:
        function = getattr(importlib.import_module(module), name)
        value = function(**cell, store=store, device=device)
        took = time.perf_counter() - start + math.fsum(_saved.get())
    except training.Interrupted:
        _worker["stopped"] = "own" in _worker
        raise
    finally:
        _saved.reset(saved)
    arrays = {key: each for key, each in value.items() if isinstance(each, np.ndarray)}
    rest = json.loads(json.dumps({key: each for key, each in value.items() if key not in arrays}))
    note = provenance.commit() | provenance.machine(training.device(device))
    note |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(took, 2)}
    return Result(rest | arrays, note)


_saved: contextvars.ContextVar[list[float]] = contextvars.ContextVar("saved")
_worker: dict[str, bool] = {}  # of a process of `processes`: what is handed to it after it was told to stop is not begun


def _begin() -> None:
    """What such a process does first."""
    torch.set_num_threads(1)
    _worker["own"] = True


def sweep(*arguments: Any, store: str | None, **settings: Any) -> list[Any]:
    """`training.sweep` in a call of a study, kept in the folder `store`; what it finds there counts in the call's seconds."""
    start, runs = time.perf_counter(), []
    try:
        runs = training.sweep(*arguments, store=None if store is None else training.Store(Path(store)), **settings)
    except training.Diverged as stopped:
        runs = stopped.runs
        raise
    finally:
        _saved.get([]).append(max(0.0, math.fsum(run.seconds for run in runs) - (time.perf_counter() - start)))
    return runs


def processes(count: int | None = None) -> Callable[[], Executor]:
    """Executors of `count` processes, one for each core by default, with one thread each."""
    count = os.cpu_count() or 1 if count is None else checks.whole("workers", count)
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    return lambda: ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin)


def dask(address: str) -> Callable[[], Executor]:
    """Executors of the Dask cluster whose scheduler is at `address`; `ValueError` without Dask or without that scheduler."""
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--dask needs Dask: pip install -c constraints.txt '.[cluster]'") from None
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: {checks.line(error)}") from None

    @contextlib.contextmanager
    def executor() -> Iterator[Executor]:
        yield client.get_executor(pure=False, retries=_TRIES)

    return executor  # type: ignore[return-value]


def seconds(notes: Sequence[dict[str, Any]]) -> float:
    """Seconds of compute that calls took, each counted once."""
    return math.fsum(note["seconds"] for note in notes)
