"""Calls for `test_studies_lab.py`: they must be in a module that other processes can import."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from nbvae import data, models, objectives, training
from studies import lab


def square(n: int, log: str, store: str | None, device: str, **cell: Any) -> dict[str, Any]:
    """n² and an array; each call that ends is a line in the file `log`."""
    value = {"value": n * n, "many": np.arange(n) / 3}
    with open(log, "a") as file:
        file.write(f"{n}\n")
    return value


def trains(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """A short training, and the seconds that it took when it was made."""
    ds, config = data.load("digits").first(500), training.TrainConfig(epochs=60, batch_size=50, device=device)
    [run] = lab.sweep(lambda: models.VAE(ds.shape, 2), ds, objectives=[objectives.VAE()], seeds=[n], config=config, store=store)
    square(n, log, store, device)
    return {"trained": run.seconds}


def dies_once(n: int, log: str, deadly: int, store: str | None, device: str) -> dict[str, Any]:
    """`square`, but its process is killed at the first call with n = `deadly`."""
    mark = Path(f"{log}.killed")
    if n == deadly and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(n, log, store, device)


def fails_once(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """`square`, but the first call with each n fails."""
    mark = Path(f"{log}.{n}")
    if not mark.exists():
        mark.touch()
        raise OSError("the disk was away")
    return square(n, log, store, device)


def stops_once(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """`square`, but the first call with n = 2 is told to stop, as a cluster does with a worker."""
    mark = Path(f"{log}.stopped")
    if n == 2 and not mark.exists():
        mark.touch()
        raise training.Interrupted("stopped after 3 of 9 epochs")
    return square(n, log, store, device)


def sleeps(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """Says in the file `log` that it runs, and then takes for ever."""
    with open(log, "a") as file:
        file.write(f"{n}\n")
    time.sleep(1000)
    return {}


def sleeps_as_a_training(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """`sleeps`, but a signal ends the call alone, as it does a training with a store."""

    def stop(*_: Any) -> None:
        raise training.Interrupted("stopped after 3 of 9 epochs")

    signal.signal(signal.SIGTERM, stop)
    return sleeps(n, log, store, device)


def fails(n: int, log: str, store: str | None, device: str) -> dict[str, Any]:
    """`square`, but never for n = 2 or 3."""
    if n == 2:
        raise OSError("two is broken\nfor ever")
    if n == 3:
        raise ValueError("three is not allowed")
    return square(n, log, store, device)
