"""What a store costs: seconds inside checkpoint writes, the look-up of a run, reading finished ones.

    python benchmarks/checkpoints.py [--folder PLACE]

Writing is timed where training waits for it, and where it happens, in a thread beside it.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbvae import data, models, objectives, training
from nbvae.training import _checkpoint, _keeping


class Timed:
    """The seconds spent in some methods of a class, while they are timed."""

    def __init__(self, owner: Any, *names: str):
        self.owner, self.real, self.seconds, self.calls = owner, {name: getattr(owner, name) for name in names}, 0.0, 0

    def __enter__(self) -> "Timed":
        for name, real in self.real.items():
            setattr(self.owner, name, self._timed(real))
        return self

    def __exit__(self, *error: object) -> None:
        for name, real in self.real.items():
            setattr(self.owner, name, real)

    def _timed(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return real(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return call


def written(dataset: data.Dataset, epochs: int, **options: Any) -> str:
    """The share of a fit that goes into checkpoints."""
    config = training.TrainConfig(epochs=epochs, batch_size=128, device="cpu")

    def fit(store: training.Store | None) -> float:
        with training.seeded(0):
            model = models.VAE(dataset.shape, 16 if dataset.shape[-1] == 28 else 8)
        return training.fit(model, dataset, objectives.VAE(), config, store=store).seconds

    fit(None)
    with tempfile.TemporaryDirectory(dir=options.pop("folder")) as folder:
        store = training.Store(folder, **options)
        waiting = Timed(_checkpoint.Checkpoints, "before_step", "after_epoch")
        with waiting as waited, Timed(_checkpoint.Checkpoints, "_save") as beside:
            total = fit(store)
    each, its = (1e3 * timed.seconds / max(1, beside.calls) for timed in (waited, beside))
    share = f"{100 * waited.seconds / total:5.2f} % of {total:.2f} s"
    return f"{share}: {beside.calls} checkpoints, {each:.1f} ms each, and {its:.1f} beside; {fit(None):.2f} s without a store"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time checkpoints, and a store of many runs.")
    parser.add_argument("--folder", help="where files are written; by default where the system keeps temporary ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load("digits")
    pixels = (torch.rand(10_000, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    mnist = data.Dataset("pixels", pixels, pixels[:10], pixels[:10])
    for name, dataset, epochs in (
        ("digits 64-128-8, 100 epochs", digits, 100),
        ("MNIST 784-400-400-16, 5 epochs of 10,000", mnist, 5),
    ):
        for how in ({}, {"every": 1}):
            print(
                f"{name}, Store({', '.join(f'{k}={v}' for k, v in how.items())})".ljust(58),
                written(dataset, epochs, folder=options.folder, **how),
            )

    config = training.TrainConfig(epochs=1, batch_size=600, device="cpu")
    kinds = [objectives.BetaVAE(0.1 * i) for i in range(1, 11)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = training.Store(folder)

        def sweep() -> float:
            start = time.perf_counter()
            training.sweep(
                lambda: models.VAE(digits.shape, 8), digits, objectives=kinds, seeds=range(10), config=config, store=store
            )
            return time.perf_counter() - start

        first = sweep()
        print(f"a sweep of 100 finished runs: {sweep():.2f} s; its training, of one epoch: {first:.2f} s")
        [one, *_] = store.runs()
        for i in range(10_000 - len(store.runs())):
            Path(folder, f"{i:064x}").mkdir()
        shutil.copytree(one, Path(folder, f"{0:064x}"), dirs_exist_ok=True)
        session = _keeping.Session(store, config)
        for what, key in (("one that is there", one.name), ("one that is not", "f" * 64)):
            with Timed(session, "find") as looked:
                for _ in range(20):
                    session.find(key)
            print(f"the look-up among {len(store.runs()):,} runs of {what}: {1e3 * looked.seconds / looked.calls:.2f} ms")


if __name__ == "__main__":
    main()
