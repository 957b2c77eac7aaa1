"""What the library's loop costs: `fit` against a bare loop, `sweep` against the same fits one after the other, and what a model
of many β costs against a β-VAE (`price` and `sweep_price` of studies/multi_beta.py).

    python benchmarks/speed.py [--rounds 5] [--threads 2]

Prints ratios of medians over interleaved rounds in one process: the machine's speed drifts, the ratio does not.
MNIST is timed with random pixels of its size: the values do not change the time.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nbvae import data, models, objectives, training


def bare_loop(model: models.VAE, x: torch.Tensor, config: training.TrainConfig) -> None:
    """The least that training this model with Adam takes."""
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    for _ in range(config.epochs):
        for index in torch.randperm(len(x)).split(config.batch_size):
            terms = objectives.elbo_terms(model, x[index])
            loss = (terms.distortion + terms.rate).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, list[float]]:
    """Median seconds of both and the ratio first/second of each round, after one round that is not counted."""
    times = [(timed(first), timed(second)) for _ in range(rounds + 1)][1:]
    first_time, second_time = (statistics.median(column) for column in zip(*times, strict=True))
    return first_time, second_time, [a / b for a, b in times]


def report(name: str, first: Callable[[], object], second: Callable[[], object], rounds: int) -> None:
    a, b, ratios = interleaved(first, second, rounds)
    print(
        f"{name:58s} {statistics.median(ratios):6.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]   {a:7.2f} s / {b:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time fit against a bare loop, sweep against fits, and a model of many β.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    digits = data.load("digits")
    pixels = (torch.rand(6400, 1, 28, 28) > 0.8).float()
    mnist = data.Dataset(name="pixels", train=pixels, validation=pixels[:10], test=pixels[:10])
    print(f"{options.threads} threads, median of {options.rounds} interleaved rounds [least, most]")

    def model(dataset: data.Dataset, hidden: int, latents: int) -> models.VAE:
        return models.VAE(dataset.shape, latents, hidden=(hidden,))

    config = training.TrainConfig(epochs=2, batch_size=128, device="cpu")
    report("fit / bare loop, MNIST 784-512-16, batch 128",
           lambda: training.fit(model(mnist, 512, 16), mnist, objectives.VAE(), config),
           lambda: bare_loop(model(mnist, 512, 16), mnist.train, config), options.rounds)  # fmt: skip
    for name, dataset, hidden, latents, config in (
        ("digits 64-128-128-8, batch 100", digits, (128, 128), 8, training.TrainConfig(25, 100, device="cpu")),
        ("MNIST 784-200-200-16, batch 100", mnist, (200, 200), 16, training.TrainConfig(4, 100, device="cpu")),
    ):
        shape = {"shape": dataset.shape, "latent_dim": latents, "hidden": hidden}
        plain, many = functools.partial(models.VAE, **shape), functools.partial(models.MultiBetaVAE, **shape)
        one = functools.partial(one_by_one, many, dataset, [objectives.MultiBeta()], config)
        alone = functools.partial(one_by_one, plain, dataset, [objectives.VAE()], config)
        four = functools.partial(training.sweep, plain, dataset, [0.01, 0.1, 1.0, 10.0], config=config)
        report(f"one model of many β / β-VAE, {name}", one, alone, options.rounds)
        report(f"4 of many β / sweep of 4, {name}", lambda one=one: [one() for _ in range(4)], four, options.rounds)
    betas = [2.0 ** (i / 2 - 4) for i in range(16)]
    for name, dataset, hidden, latents, config in (
        ("16 fits / sweep, digits 64-128-8, batch 64", digits, 128, 8, training.TrainConfig(3, 64, device="cpu")),
        ("16 fits / sweep, MNIST 784-512-16, batch 128", mnist, 512, 16, training.TrainConfig(1, 128, device="cpu")),
    ):
        make = functools.partial(model, dataset, hidden, latents)
        for whose, kind in (("", objectives.BetaVAE), (", an objective of one's own", Mine)):
            kinds = [kind(beta) for beta in betas]
            together = functools.partial(training.sweep, make, dataset, objectives=kinds, config=config)
            report(name + whose, functools.partial(one_by_one, make, dataset, kinds, config), together, options.rounds)


@dataclass(frozen=True)
class Mine:
    """A β-VAE as a user writes it: the library does not know that it leaves leading dimensions alone."""

    beta: float

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + self.beta * terms.rate, terms)


def one_by_one(make: Callable[[], models.VAE], dataset: data.Dataset, kinds: list, config: training.TrainConfig) -> None:
    for objective in kinds:
        training.fit(make(), dataset, objective, config)


if __name__ == "__main__":
    main()
