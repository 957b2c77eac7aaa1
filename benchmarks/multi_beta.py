"""One multi-β model against a β-VAE for each β, on static binarised MNIST: regret of D + βR on the test images, and seconds.

    python benchmarks/multi_beta.py [--budget quick|mlp] [--seed 0] [--out results.json]

Everything has the same architecture, batch size and schedule, and the best of the budget's learning rates on the validation
images. Three races: equal steps (with the Multi-Rate gates too), equal total compute for a curve of four βs, and of ten.
"Compute" is seconds: a multi-β step costs more, and its number of epochs is cut by the ratio that is measured first.
Every training is written to --out as it ends, and is not repeated by a run that finds it there.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbvae import data, estimators, models, objectives, training

FOUR = (0.01, 0.1, 1.0, 10.0)
# Wider than the βs that are compared: at the ends of its range a model sees neighbours on one side only.
RANGE = (0.005, 20.0)
TEN = tuple(float(f"{beta:.4g}") for beta in np.geomspace(0.01, 10, 10))
# Widths, latents, training images, epochs of a β-VAE, batch, learning rates.
BUDGETS = {
    "quick": {"hidden": (200,), "latent_dim": 16, "images": 10_000, "epochs": 4, "batch": 64, "lrs": (2e-3, 4e-3, 8e-3)},
    "mlp": {"hidden": (400, 400), "latent_dim": 32, "images": 50_000, "epochs": 8, "batch": 64, "lrs": (5e-4, 1e-3, 2e-3)},
}


class Race:
    def __init__(self, budget: str, seed: int, out: Path):
        self.plan, self.seed, self.out = BUDGETS[budget], seed, out
        whole = data.load("mnist")
        some = whole.train[: self.plan["images"]]
        self.dataset = data.Dataset("mnist", some, whole.validation, whole.test, binarize=whole.binarize)
        self.shape = {"shape": whole.shape, "latent_dim": self.plan["latent_dim"], "hidden": self.plan["hidden"]}
        self.known = json.loads(out.read_text()) if out.exists() else {}

    def config(self, lr: float, epochs: int) -> training.TrainConfig:
        return training.TrainConfig(epochs, self.plan["batch"], lr, "one_cycle", self.seed)

    def measured(self, model: Any, beta: float) -> dict[str, float]:
        found = {"beta": beta}
        for split, x in (("val", self.dataset.validation), ("test", self.dataset.test)):
            point = estimators.evaluate(model, x, beta, n_samples=1)
            found |= {f"{split}_rate": point.rate, f"{split}_distortion": point.distortion, f"{split}_loss": point.loss()}
        return found

    def keep(self, key: str, points: list[dict[str, float]], seconds: float) -> None:
        self.known[key] = {"points": points, "seconds": seconds}
        self.out.write_text(json.dumps(self.known, indent=1) + "\n")
        print(f"{key}: {seconds:.0f} s", flush=True)

    def dedicated(self) -> dict[float, dict[str, float]]:
        """The best of the learning rates on the validation images, for each β on its own."""
        for lr in self.plan["lrs"]:
            key = f"dedicated lr={lr:g} seed={self.seed}"
            if key not in self.known:
                make = functools.partial(models.VAE, **self.shape)
                config = self.config(lr, self.plan["epochs"])
                runs = training.sweep(make, self.dataset, TEN, seeds=[self.seed], config=config)
                points = [self.measured(run.model, beta) for run, beta in zip(runs, TEN, strict=True)]
                self.keep(key, points, sum(run.seconds for run in runs))
        every = [self.known[f"dedicated lr={lr:g} seed={self.seed}"]["points"] for lr in self.plan["lrs"]]
        return {
            best["beta"]: best for best in (min(same, key=lambda point: point["val_loss"]) for same in zip(*every, strict=True))
        }

    def multi(self, conditioning: str, epochs: int, betas: tuple[float, ...]) -> list[dict[str, float]]:
        """The best of the learning rates by the validation loss summed over `betas`."""
        tried = []
        for lr in self.plan["lrs"]:
            key = f"{conditioning} epochs={epochs} lr={lr:g} seed={self.seed}"
            if key not in self.known:
                torch.manual_seed(self.seed)
                model = models.MultiBetaVAE(**self.shape, beta_range=RANGE, conditioning=conditioning)
                objective = objectives.MultiBeta() if conditioning == "film" else objectives.MultiBeta(power=0)
                run = training.fit(model, self.dataset, objective, self.config(lr, epochs))
                self.keep(key, [self.measured(model.at(beta), beta) for beta in TEN], run.seconds)
            tried.append([point for point in self.known[key]["points"] if point["beta"] in betas])
        return min(tried, key=lambda points: sum(point["val_loss"] for point in points))

    def cost(self) -> float:
        """Seconds of a multi-β training over those of a β-VAE, median of five interleaved pairs."""
        if "cost" not in self.known:
            some = data.Dataset(
                "part", self.dataset.train[:5_000], self.dataset.validation, self.dataset.test, binarize="static"
            )
            ratios = []
            for _ in range(6):
                seconds = []
                for make, objective in (
                    (functools.partial(models.MultiBetaVAE, beta_range=RANGE), objectives.MultiBeta()),
                    (models.VAE, objectives.VAE()),
                ):
                    model = make(**self.shape)
                    start = time.perf_counter()
                    training.fit(model, some, objective, self.config(1e-3, 1))
                    seconds.append(time.perf_counter() - start)
                ratios.append(seconds[0] / seconds[1])
            self.known["cost"] = statistics.median(ratios[1:])
        return self.known["cost"]


def table(title: str, ours: list[dict[str, float]], theirs: dict[float, dict[str, float]]) -> None:
    print(f"\n{title}\n      β      R      D   D+βR  dedicated  regret")
    regrets = []
    for point in ours:
        best = theirs[point["beta"]]["test_loss"]
        regrets.append(point["test_loss"] - best)
        numbers = point["test_rate"], point["test_distortion"], point["test_loss"], best
        print(
            f"{point['beta']:7.4g} {numbers[0]:6.1f} {numbers[1]:6.1f} {numbers[2]:6.1f} {numbers[3]:10.1f} {regrets[-1]:+7.2f}"
        )
    share = max(regret / theirs[point["beta"]]["test_loss"] for regret, point in zip(regrets, ours, strict=True))
    print(
        f"mean {np.mean(regrets):+.2f}, largest {max(regrets):+.2f} nats, {100 * share:+.1f} % of the dedicated loss",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Race one multi-β model against dedicated β-VAEs on MNIST.")
    parser.add_argument("--budget", choices=BUDGETS, default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    race = Race(options.budget, options.seed, options.out or Path(f"multi_beta_{options.budget}.json"))
    cost, epochs = race.cost(), race.plan["epochs"]
    print(f"a multi-β step costs {cost:.2f} times one of a β-VAE")
    theirs = race.dedicated()
    table("equal steps", race.multi("film", epochs, FOUR), theirs)
    table("equal steps, Multi-Rate gates", race.multi("gates", epochs, FOUR), theirs)
    table("equal compute for four βs", race.multi("film", int(4 * epochs / cost), FOUR), theirs)
    table("equal compute for ten βs", race.multi("film", int(10 * epochs / cost), TEN), theirs)


if __name__ == "__main__":
    main()
