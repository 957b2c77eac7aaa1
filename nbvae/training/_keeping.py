"""Runs that survive: a `Store` of finished runs and of checkpoints, and what `fit` and `sweep` do with one.

A store is a folder. Each finished run is a folder in it, named by the run's key (`_key.py`), with the two files of `Run.save`;
it appears whole, by one renaming. The folder "unfinished" has one for each training that is not over: its checkpoint, and what
is being written.
"""

import contextlib
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn

from nbvae import checks, data
from nbvae.training import _record, _writing
from nbvae.training._checkpoint import NAME, Checkpoints, Pauses, Stop, keys_of
from nbvae.training._config import TrainConfig, device
from nbvae.training._key import key_of, key_of_stack
from nbvae.training.store import Run, fill, read_file, read_weights, serialized

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNFINISHED, _REFUSED = "unfinished", "refused.txt"
_log = logging.getLogger("nbvae.training")


class Interrupted(SystemExit):
    """A signal ended a training that has a store. The text says how far it had come, and how to go on.

    It ends a script with that line and nothing else, as `SystemExit` does, of which it is a kind; the exit status is 1.

    >>> from nbvae import training
    >>> try:
    ...     raise training.Interrupted("stopped after 3 of 20 epochs; the same call goes on from there: runs")
    ... except SystemExit as error:
    ...     print(error)
    stopped after 3 of 20 epochs; the same call goes on from there: runs
    """


@dataclass(frozen=True, init=False)
class Store:
    """A folder in which `fit` and `sweep` keep their runs: a finished one is loaded, an interrupted one goes on.

    - `folder`: where; it is made when a run is to be kept. Several processes may use it at the same time.
    - `every`: a checkpoint after every so many epochs: killed at any moment, a training repeats at most as many that were over.
      Each costs some milliseconds, beside the training and not in its way unless epochs are as short.
    - `minutes`: a checkpoint after so many minutes, at the end of a step. With neither of the two, one is made whenever the
      last took less than a hundredth of the time since.

    A run is found by a hash of all that decides what comes out of it: the model's settings and its initial weights and buffers
    (seed torch before it is made), objective, `TrainConfig` (of the device the kind), data, and the code: the library's that
    trains, and of classes and functions of one's own what Python runs of them, with the functions, classes and values that
    they name. An edited body is another run; comments, and what is imported inside a function, are not seen.

    A run that goes on is, on a CPU with as many threads, the same bit by bit as one that was never interrupted. For that,
    everything that changes must be a tensor of the model, as parameter, buffer or attribute, and random numbers torch's. If
    anything else changes, such as a counter in a model or an objective, no checkpoint is made from then on, and one line in the
    log "nbvae.training" says so.

    SIGINT (Ctrl-C) and SIGTERM let training stop at its next step, with a checkpoint: `Interrupted`, one line. A second SIGINT
    interrupts at once. This is for the main thread, others cannot receive signals.

    A run that diverged is kept too, and raises `Diverged` again when it is loaded. One that a callback ended is none that the
    config describes: its checkpoint is kept, and the same call goes on from there. Where the disk gets full while training, one
    line in the log says so, and the trained model is returned all the same.

    Raises `ValueError`, in one line: for a folder that cannot be written to, before anything is trained, and for a damaged run
    or checkpoint, which is never used and never replaced: delete its folder to train it again.

    >>> import tempfile
    >>> from nbvae import data, models, objectives, training
    >>> ds, config = data.load("digits"), training.TrainConfig(epochs=1)
    >>> def train(store):
    ...     with training.seeded(0):
    ...         model = models.VAE(ds.shape, 2)
    ...     return training.fit(model, ds, objectives.VAE(), config, store=store)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = training.Store(folder, every=1)
    ...     first, again = train(store), train(store)
    ...     len(store.runs()), first.seconds == again.seconds
    (1, True)
    """

    folder: Path
    every: int | None
    minutes: float | None

    def __init__(self, folder: str | os.PathLike, every: int | None = None, minutes: float | None = None):
        try:
            place = Path(os.path.expanduser(folder))
        except TypeError:
            raise ValueError(f"folder must be the path of a folder, got {checks.short(folder)}") from None
        if os.path.exists(place) and not os.path.isdir(place):
            raise _writing.Unusable(f"folder must be the path of a folder, and {place} is none")
        object.__setattr__(self, "folder", place)
        object.__setattr__(self, "every", None if every is None else checks.whole("every", every))
        object.__setattr__(self, "minutes", None if minutes is None else checks.positive("minutes", minutes))

    def runs(self) -> list[Path]:
        """The folders of the finished runs: `training.load` reads each."""
        if not self.folder.is_dir():
            return []
        return sorted(each for each in self.folder.iterdir() if re.fullmatch("[0-9a-f]{64}", each.name))


@dataclass(frozen=True)
class Found:
    """A finished run as it is in a store."""

    folder: Path
    record: dict[str, Any]
    state: dict[str, Tensor]
    hidden: dict[str, Tensor]

    def into(self, model: nn.Module, objective: Any, config: TrainConfig) -> tuple[Run, str | None]:
        """The run, with its weights in `model`, on the config's device; and the problem with which it ended, if it did."""
        _make_room(model, self.state | self.hidden)
        problem = fill(model.cpu(), self.record, self.state, self.hidden, given=True)
        if problem:
            raise _record.refusal(
                self.folder, self.record, f"it does not fit the model that its key is of, {problem}", whole=True
            )
        history = _record.numbers(self.record["history"])
        run = Run(model.to(device(config.device)).train(), objective, config, history, float(self.record["seconds"]))
        return run, self.record.get("problem")


class Session:
    """One call of `fit` or `sweep`: its store, if it has one, and the signals that may end it.

    - `store`: where runs are kept; None for nowhere, and then signals are left alone.
    - `config`: of its runs.
    - `runs`: how many there are.
    """

    def __init__(self, store: Store | None, config: TrainConfig, runs: int = 1):
        if store is not None and not isinstance(store, Store):
            raise ValueError(f"store must be a training.Store, got {checks.short(store)}: training.Store(folder) makes one")
        self.store, self.config, self.runs = store, config, runs
        self.stop, self.signal = Stop(), 0
        self.finished = 0
        self.told: set[str] = set()
        self.trainings: list[Checkpoints] = []
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self.store is not None and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):  # what is to be ignored stays so
                    self.handlers[number] = handler
                    signal.signal(number, self._on_signal)
        if self.store is not None:
            with contextlib.suppress(OSError, ValueError):  # whoever needs to write there says so
                _writing.clear(self.store.folder / _UNFINISHED)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.signal and (error is None or isinstance(error, InterruptedError)):
            raise Interrupted(self._line()) from None
        if self.signal and isinstance(error, Exception):  # an error came first: the signal is answered as ever
            signal.raise_signal(self.signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt
        self.signal, self.stop.wished = number, True

    def _line(self) -> str:
        assert self.store is not None
        left = [each for each in self.trainings if not each.over]
        done = min((each.epoch for each in left), default=self.config.epochs if self.finished == self.runs else 0)
        how_far = f"stopped after {done} of {self.config.epochs} epochs"
        if self.runs > 1:
            how_far += f" with {self.finished} of {self.runs} runs finished"
        lost = next((each.lost for each in left if each.lost), None)
        where = f"the same call goes on from there: {self.store.folder}"
        if lost is not None:
            before = "the same call goes on from the one before, or begins anew"
            where = f"no checkpoint was made ({lost}); {before}: {self.store.folder}"
        return " ".join(f"{how_far}; {where}".splitlines())

    def key(self, model: nn.Module, dataset: data.Dataset, objective: Any, config: TrainConfig) -> str:
        """The key of a run; without a store, which nobody asks for it, none."""
        return "" if self.store is None else key_of(model, dataset, objective, config)

    def find(self, key: str) -> Found | None:
        """The finished run with this key. `ValueError` for one that is damaged."""
        if self.store is None or not os.path.isdir(folder := self.store.folder / key):
            return None
        try:
            record = _record.parse(read_file(folder / "run.json"), folder, make=True, objective=True)
            if record.get("key") != key:
                raise _record.refusal(folder, record, "it is that of another folder")
            state, hidden = read_weights(folder, record)
        except FileNotFoundError:
            raise _record.refusal(folder, {}, "a file is missing") from None
        self.forget(key)
        self.finished += 1
        return Found(folder, record, state, hidden)

    def begun(self, place: str) -> list[str] | None:
        """The keys of the runs in the checkpoint at a place; None where there is none."""
        if self.store is None or not os.path.exists(path := self._unfinished(place) / NAME):
            return None
        return keys_of(path)

    def pauses(self, place: str, keys: Sequence[str], watch: Callable[[], Callable[[], str | None]]) -> Pauses:
        """The pauses of a training: with a store with checkpoints.

        - `place`: under what key they are.
        - `keys`: those of the runs that are trained.
        - `watch`: begins to watch what is trained, for what then says why a checkpoint would not be exact, if it would not.
        """
        if self.store is None:
            return Pauses(self.stop)
        folder, key = self._unfinished(place), keys[0] if len(keys) == 1 else key_of_stack(keys)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _writing.clear(folder)
            for each in (folder, self.store.folder):
                if not os.access(each, os.W_OK):
                    raise PermissionError(None, "no permission to write")
        except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
            reason = getattr(problem, "strerror", None) or problem
            raise _writing.Unusable(
                f"no run can be kept in {self.store.folder} ({reason}): give a folder that can be written to"
            ) from None
        pauses = Checkpoints(folder, key, keys, self.store.every, self.store.minutes, self.stop, watch(), self.told)
        self.trainings.append(pauses)
        return pauses

    def finish(self, pauses: Pauses, runs: Sequence[tuple[str, Run, str | None]]) -> None:
        """Keep finished runs, each with its key and its problem; and then their checkpoint no longer."""
        if self.store is None or not isinstance(pauses, Checkpoints) or not pauses.complete:
            return
        try:
            for key, run, problem in runs:
                weights = serialized(run.model)
                more = {"key": key} | ({} if problem is None else {"problem": problem})
                record = _record.compose(run.model, run.objective, run.config, run.history, run.seconds, weights, more)
                files = {"model.safetensors": weights, "run.json": (json.dumps(record, indent=1) + "\n").encode()}
                _writing.write_folder(self.store.folder / key, files, beside=pauses.folder)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            if reason not in self.told:  # else it was said that this may come
                self.told.add(reason)
                cure = "save the run elsewhere with its save(folder), or make room and repeat the call"
                _log.warning("what is trained is not kept in %s (%s): %s", self.store.folder, reason, cure)
        else:
            self.finished += len(runs)
            pauses.over = True
            self.forget(pauses.folder.name)

    def refuse(self, pauses: Pauses, reason: str) -> None:
        """Note why models cannot be trained as one after all, so that it is not tried again."""
        pauses.over = True
        if isinstance(pauses, Checkpoints):
            with contextlib.suppress(OSError):  # then it will be
                _writing.write(pauses.folder / _REFUSED, reason.encode())
                (pauses.folder / NAME).unlink(missing_ok=True)

    def refused(self, place: str) -> str | None:
        """Why the models of a place are not to be trained as one, where that is known."""
        note = self._unfinished(place) / _REFUSED if self.store is not None else None
        return note.read_text() if note is not None and note.is_file() else None

    def forget(self, place: str, keys: Sequence[str] = ()) -> None:
        """Remove what is kept of a training that is over: if runs with all these keys are there."""
        if self.store is None or not all(os.path.isdir(self.store.folder / key) for key in keys):
            return
        if os.path.isdir(folder := self._unfinished(place)):
            with contextlib.suppress(OSError):  # where nothing can be written, it may stay
                _writing.remove(folder)

    def _unfinished(self, place: str) -> Path:
        assert self.store is not None
        return self.store.folder / _UNFINISHED / place


def _make_room(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Let a model have the buffers and attributes that training has made, or of the shape that it gave them."""
    parts = dict(model.named_modules())
    for name, value in tensors.items():
        parent, _, last = name.rpartition(".")
        if parent not in parts or last in parts[parent]._parameters:
            continue
        where = parts[parent]._buffers if last in parts[parent]._buffers else vars(parts[parent])
        if not isinstance(now := where.get(last), Tensor) or (now.shape, now.dtype) != (value.shape, value.dtype):
            where[last] = torch.empty_like(value)
