"""Checkpoints: a training in a file, from which it goes on as if it had not been interrupted.

The file is one of safetensors. Its header holds what is no tensor, as JSON, and the SHA-256 of the whole file with that hash
taken for zeros. It is there whole or not at all, and written beside the training, in a thread that waits for the disk.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import safetensors
import safetensors.torch
import torch

from nbvae.training import _writing
from nbvae.training._progress import Progress, State

FORMAT = 1
NAME = "checkpoint.safetensors"
# Without a rhythm of one's own, writing may take one part in so many of the time; the first write is taken to cost so many
# seconds.
_SHARE, _FIRST = 100, 0.01
_ZEROS = b"0" * 64
_log = logging.getLogger("nbvae.training")


class Stop:
    """A wish that training stops at its next step. A signal's handler may express it: there is no lock to wait for."""

    wished = False


class Pauses:
    """The places of the loop where it may be left, and later gone on from; here without anything that is kept."""

    seconds = 0.0  # that went into the training before this process
    complete = True  # whether the training was all that its config says
    over = False  # whether there is nothing to go on with

    def __init__(self, stop: Stop):
        self.stop = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Training is over, for now at least."""

    def begin(self, now: Progress) -> None:
        """Before the first step: be where training was left."""

    def before_step(self, now: Progress) -> None:
        if self.stop.wished:
            raise InterruptedError("the sweep was interrupted")

    def before_end(self) -> None:
        """Before an epoch is over."""

    def after_epoch(self, now: Progress, last: bool, whole: bool) -> None:
        """`last`: whether training ends; `whole`: whether it was all that its config says, and not ended by a callback."""


class Checkpoints(Pauses):
    """Pauses at which a checkpoint may be written into a folder, and an earlier one is found there.

    - `folder`: where it is.
    - `key`: of what is trained. A checkpoint of something else is none.
    - `keys`: of the runs that are trained.
    - `every`, `minutes`: when one is written, as for `Store`.
    - `stop`: whether training is to stop, after a checkpoint.
    - `unfit`: in words why a checkpoint would not be exact, None where it would be.
    - `told`: the reasons why something is not written that were told before.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        keys: Sequence[str],
        every: int | None,
        minutes: float | None,
        stop: Stop,
        unfit: Callable[[], str | None],
        told: set[str],
    ):
        super().__init__(stop)
        self.folder, self.key, self.keys, self.every, self.minutes = folder, key, list(keys), every, minutes
        self.unfit, self.told = unfit, told
        self.start = self.last = time.monotonic()
        self.cost = _FIRST
        self.epoch = 0  # the one that is trained
        self.lost: str | None = None  # why what was trained last is in no checkpoint
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()

    def begin(self, now: Progress) -> None:
        if (found := read(self.folder / NAME, self.key)) is not None:
            tensors, said = found
            self.seconds = said["seconds"]
            now.go_on(tensors, said)
        self.epoch = now.epoch

    def before_step(self, now: Progress) -> None:
        if self.stop.wished:
            self._write(now)
            self._wait()
            raise InterruptedError("stopped by a signal")
        if time.monotonic() - self.last >= self._interval():
            self._write(now)
            self._tell()

    def before_end(self) -> None:
        self._wait()  # for the epoch before, or two that were over could be repeated

    def after_epoch(self, now: Progress, last: bool, whole: bool) -> None:
        self.epoch, self.complete = now.epoch, whole
        # Of several runs some may be kept, and others not, when the process ends: these then are what they are here.
        needed = last and (not whole or len(self.keys) > 1)
        if needed or (self.every and now.epoch % self.every == 0):
            self._write(now)
            self._tell()

    def _interval(self) -> float:
        """Seconds between two writes for which no epoch asks."""
        if self.minutes is not None:
            return 60 * self.minutes
        return _SHARE * self.cost if self.every is None else math.inf

    def _write(self, now: Progress) -> None:
        """Copy all, and let it be written while training goes on."""
        begun = time.monotonic()
        unfit = self.unfit()
        state = None if unfit else now.state()
        self._wait()
        if state is None:
            self.lost = f"training could not go on exactly: {unfit}"
        else:
            state[1].update(seconds=self.seconds + begun - self.start, keys=self.keys)
            self.pending = self.pool.submit(self._save, state, time.monotonic() - begun)
        self.last = time.monotonic()

    def _save(self, state: State, cost: float) -> None:
        begun = time.monotonic()
        try:
            _writing.write(self.folder / NAME, *encode(self.key, state))
            self.lost = None
        except OSError as problem:
            self.lost = f"{problem.strerror or problem}"
        self.cost = cost + time.monotonic() - begun

    def _wait(self) -> None:
        """Until what is being written has been."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def _tell(self) -> None:
        """Say once, and of a write after the next one, why there is no checkpoint."""
        if self.lost and self.lost not in self.told:
            self.told.add(self.lost)
            where = self.folder.parent.parent
            _log.warning(
                "no checkpoint after %d epochs in %s: %s; what is trained is kept at its end, if there is room",
                self.epoch,
                where,
                self.lost,
            )


def encode(key: str, state: State) -> tuple[memoryview, bytes, memoryview]:
    """A checkpoint's file: what stands before the hash, the hash, and what stands behind it."""
    tensors, said = state
    said = said | {"format": FORMAT, "torch": torch.__version__, "key": key}
    content = safetensors.torch.save(tensors, {"state": json.dumps(said), "sha256": _ZEROS.decode()})
    at, view = _place(content, _ZEROS), memoryview(content)
    return view[:at], hashlib.sha256(content).hexdigest().encode(), view[at + len(_ZEROS) :]


def read(path: Path, key: str) -> State | None:
    """What is in a checkpoint; None where there is no file, or one of another version of torch, which is said in the log.

    Raises `ValueError` for a file that is not what was written, or not for this key.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise _writing.Unusable(f"{path} cannot be read ({problem.strerror or problem}): give a folder that can be") from None
    try:
        at = _place(content, b"")
        digest, end = content[at : at + len(_ZEROS)], at + len(_ZEROS)
        if hashlib.sha256(content[:at] + _ZEROS + content[end:]).hexdigest().encode() != digest:
            raise ValueError("its SHA-256 is another")
        said = json.loads(json.loads(_header(content))["__metadata__"]["state"])
        if said["key"] != key or said["format"] != FORMAT:
            raise ValueError("it was written for something else")
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as problem:
        reason = f"{path} holds a damaged checkpoint ({problem}): restore it from a copy, or delete it, and the run begins anew"
        raise _writing.Unusable(reason) from None
    if said["torch"] != torch.__version__:
        _log.warning("%s was written with torch %s, this is %s: the run begins anew", path, said["torch"], torch.__version__)
        return None
    return tensors, said


def keys_of(path: Path) -> list[str]:
    """The keys of the runs in a checkpoint, where there is one; read from its header only."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(json.loads(file.read(length))["__metadata__"]["state"])["keys"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return []  # whoever reads all of it says what is wrong


def _header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _place(content: bytes, digest: bytes) -> int:
    """Where the hash stands in a checkpoint's header: once, as quotes are escaped in the JSON beside it."""
    name = b'"sha256":"'
    return 8 + _header(content).index(name + digest) + len(name)
