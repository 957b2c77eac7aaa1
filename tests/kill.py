"""The proof that runs survive: trainings that are killed at random moments end as if nothing had happened.

    python tests/kill.py [--kills 20] [--signals 5] [--seed 0]

A fit and a sweep are killed with SIGKILL, at random moments and in the middle of writing a file, and stopped with SIGTERM and
SIGINT; each is then called again, in another process. For each the epochs that were trained twice are printed, and whether
weights and history are, bit by bit, those of a training that was left alone. The exit status is 1 if one is not.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbvae import data, models, objectives, training
from nbvae.training import _progress, _writing

EPOCHS = 25


class Encoder(nn.Module):
    """A network of one's own, with statistics in buffers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))

    def forward(self, x):
        return self.layers(x).chunk(2, -1)


def warmed_up(model, x, step=0, reference=None):
    """A β-VAE whose β grows in the first steps."""
    terms = objectives.elbo_terms(model, x)
    return objectives.Loss(terms.distortion + min(1.0, step / SLOWLY) * terms.rate, terms)


SLOWLY = 100


def fit(store: training.Store) -> Callable[[], Any]:
    ds = data.load("digits", binarize="dynamic")
    config = training.TrainConfig(EPOCHS, 200, 3e-3, "one_cycle", device="cpu", validate_every=2, patience=20)
    with training.seeded(0):
        model = models.VAE(ds.shape, 4, encoder=Encoder(), hidden=(24,))
    return lambda: [training.fit(model, ds, warmed_up, config, store=store)]


def sweep(store: training.Store) -> Callable[[], Any]:
    ds = data.load("digits")
    config = training.TrainConfig(EPOCHS, 200, 3e-3, "cosine", device="cpu")
    kinds = [objectives.FactorVAE(1.0, width=16), objectives.FactorVAE(5.0, width=16), objectives.BetaVAE(2.0)]
    options: dict[str, Any] = {"objectives": kinds, "seeds": (0, 1), "config": config, "store": store}
    return lambda: training.sweep(lambda: models.VAE(ds.shape, 4, hidden=(24,)), ds, **options)


TRAININGS = {"fit": fit, "sweep": sweep}


def train(name: str, folder: Path, pause: float = 0.0) -> str:
    """Train, and return a hash of all weights, buffers and histories.

    A line for each epoch, when it is over, goes into `folder`/epochs.txt, and then nothing is done for `pause` seconds.
    """
    close, run = _progress.Progress.close_epoch, TRAININGS[name](training.Store(folder / "store", every=1))
    (folder / "ready.txt").touch()

    def closing(now: Any, over: bool) -> None:
        with open(folder / "epochs.txt", "a") as file:
            file.write(f"{type(now.trainee.objective).__name__} {now.epoch}\n")
        time.sleep(pause)
        close(now, over)

    _progress.Progress.close_epoch = closing
    try:
        runs = run()
    finally:
        _progress.Progress.close_epoch = close
    digest = hashlib.sha256()
    for run in runs:
        digest.update(json.dumps(run.history).encode())
        for key, value in run.model.state_dict().items():
            digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def epochs(folder: Path) -> list[str]:
    """The epochs that were trained in a folder, by all processes."""
    (folder / "epochs.txt").touch()
    return (folder / "epochs.txt").read_text().splitlines()


def twice(folder: Path) -> int:
    """How many epochs were trained once more."""
    return len(epochs(folder)) - len(set(epochs(folder)))


def child(name: str, folder: Path, dies: tuple[str, int] | None = None, pause: float = 0.0, said: str = "said.txt") -> None:
    """Train in this process; the hash goes into `folder`/hash.txt, and what is said on the way into the file `said` there.

    `dies`: in which operation on a file the process is killed, half done, and in which call of that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    out = os.open(folder / said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    if dies is not None:
        die(*dies)
    (folder / "hash.txt").write_text(train(name, folder, pause))


def die(operation: str, left: int) -> None:
    """Let call number `left` of an operation on files be the last thing that this process does."""
    owner: Any = _writing if operation == "_write" else os
    real = getattr(owner, operation)

    def deadly(path: Any, *more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            if operation == "_write":
                content = b"".join(more)
                real(path, content[: random.randrange(len(content))])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *more)

    setattr(owner, operation, deadly)


def left_behind(folder: Path) -> list[str]:
    """What there is in a store beside finished runs."""
    store = training.Store(folder / "store")
    files = [path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file()]
    return [str(file) for file in files if file.name not in ("run.json", "model.safetensors") or len(file.parts) != 2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill trainings at random moments, and let them go on.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nbvae.training", "sklearn.datasets"])

    def run(name: str, folder: Path, number: int = 0, moment: float = 0.0, dies: tuple[str, int] | None = None) -> float:
        """Train in a process of its own, which gets a signal some seconds after it is ready; the seconds that it lived then."""
        folder.mkdir(exist_ok=True)
        (folder / "ready.txt").unlink(missing_ok=True)
        process = context.Process(target=child, args=(name, folder, dies))
        process.start()
        while process.is_alive() and not (folder / "ready.txt").exists():
            time.sleep(0.001)
        begun = time.perf_counter()
        process.join(moment if number else None)
        if process.is_alive() and process.pid:
            os.kill(process.pid, number)
            process.join()
        return time.perf_counter() - begun

    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for name in TRAININGS:
            folder = Path(place, name)
            length = 0.75 * run(name, folder)  # other processes may be in the way of one, and not of another
            expected, writes = (folder / "hash.txt").read_text(), EPOCHS * (1 if name == "fit" else 2)
            cases: list[tuple[int, tuple[str, int] | None]] = []
            for i in range(options.kills):
                operation = ("_write", "replace", "rename")[i // 2 % 3]
                last = {"_write": writes + 2, "replace": writes, "rename": len(training.Store(folder / "store").runs())}
                cases.append((signal.SIGKILL, (operation, chance.randrange(last[operation])) if i % 2 else None))
            cases += [(number, None) for number in (signal.SIGTERM, signal.SIGINT) for _ in range(options.signals)]
            for i, (number, dies) in enumerate(cases):
                folder, moment = Path(place, f"{name} {i}"), chance.uniform(0.02, length)
                run(name, folder, 0 if dies else number, moment, dies)
                said = (folder / "said.txt").read_text().splitlines()
                stopped, before = not (folder / "hash.txt").exists(), twice(folder)
                assert before == 0
                run(name, folder)
                again = (folder / "said.txt").read_text().splitlines()
                result = (folder / "hash.txt").read_text() if (folder / "hash.txt").exists() else "none"
                lines = 1 if stopped and number != signal.SIGKILL else 0
                good = (
                    result == expected and len(said) == lines and not again and not left_behind(folder) and twice(folder) <= 1
                )
                wrong += not good
                how = f"in {dies[0]} number {dies[1]}" if dies else f"after {moment:.2f} of {length:.2f} s"
                print(
                    f"{name:5s} {signal.Signals(number).name:7s} {how:24s} {'' if stopped else '(was over) '}"
                    f"epochs twice: {twice(folder)}, identical: {result == expected}{'' if good else ' WRONG: '}"
                    f"{'' if good else [said, again, left_behind(folder)]}",
                    flush=True,
                )
    print(f"{wrong} wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
