"""Steps per second of `training.fit` against pythae's trainer: same architecture, batch size, optimiser and images.

    python -m venv pythae-env && pythae-env/bin/pip install pythae==0.1.2
    python benchmarks/against_pythae.py --pythae pythae-env/bin/python [--rounds 5] [--threads 1]

pythae lives in an environment of its own: its process waits while ours trains, and the other way round. Both train the network
that is pythae's default for a VAE, 784-512-16, on 6,400 binary images of MNIST's size, with Adam and a Bernoulli likelihood;
neither validates. Printed is the median over rounds of the ratio of each round: the machine's speed drifts, the ratio does
not.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

IMAGES, LATENTS, HIDDEN, EPOCHS = 6400, 16, 512, 2


def pixels() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(IMAGES, 1, 28, 28) > 0.8).float()


def theirs(batch: int) -> float:
    """Seconds of pythae's `train`; runs in its environment."""
    from pythae.data.datasets import BaseDataset  # pyright: ignore[reportMissingImports]
    from pythae.models import VAE, VAEConfig  # pyright: ignore[reportMissingImports]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore[reportMissingImports]

    x = pixels()
    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder:
        how = {"output_dir": folder, "num_epochs": EPOCHS, "learning_rate": 1e-3, "no_cuda": True}
        config = BaseTrainerConfig(per_device_train_batch_size=batch, **how)
        trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def ours(batch: int) -> float:
    from nbvae import data, models, objectives, training

    x = pixels()
    dataset = data.Dataset(name="pixels", train=x, validation=x[:10], test=x[:10])
    config = training.TrainConfig(EPOCHS, batch, 1e-3, device="cpu")
    return training.fit(models.VAE((1, 28, 28), LATENTS, hidden=(HIDDEN,)), dataset, objectives.VAE(), config).seconds


def ask(worker: Any, batch: int) -> float:
    """Let the other process train once."""
    worker.stdin.write(f"{batch}\n")
    worker.stdin.flush()
    for line in worker.stdout:  # pythae prints too
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit("pythae's process ended: run its interpreter with --worker to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time fit against pythae's trainer.")
    parser.add_argument("--pythae", help="the Python of an environment with pythae")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        for line in sys.stdin:
            print("seconds", theirs(int(line)), flush=True)
        return
    if not options.pythae:
        print("not run: --pythae names the Python of an environment with pythae, see the top of this file")
        return
    command = [options.pythae, __file__, "--worker", "--threads", str(options.threads)]
    start = functools.partial(
        subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with start(command) as worker:
        for batch in (64, 128):
            steps = EPOCHS * -(-IMAGES // batch)
            times = [(ask(worker, batch), ours(batch)) for _ in range(options.rounds + 1)][1:]
            ratios = [a / b for a, b in times]
            per_second = [steps / statistics.median(column) for column in zip(*times, strict=True)]
            print(
                f"batch {batch:3d}: {statistics.median(ratios):.2f} times the steps per second "
                f"[{min(ratios):.2f}, {max(ratios):.2f}]; {per_second[1]:.0f} against pythae's {per_second[0]:.0f}",
                flush=True,
            )
        worker.communicate()


if __name__ == "__main__":
    main()
