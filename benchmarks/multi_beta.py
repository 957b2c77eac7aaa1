"""One multi-β model against a β-VAE for each β: regret of D + βR on the test images, and seconds.

    python benchmarks/multi_beta.py [--budget digits|quick|mlp|residual_part|residual] [--seeds 0] [--out results.json]

Everything in a race has the same architecture, batch size and schedule. Learning rates are chosen on the validation images,
for each β of the β-VAEs, by the mean over βs for a multi-β model: the best of the budget's three, and of further ones as long
as the best is the largest or the smallest. Races: equal steps, also with other weights β^(−power) and with the gates of the
Multi-Rate VAE, and for digits with parts of the conditioning taken out; and, on MNIST, equal compute for a curve of four βs
and of ten. A multi-β step costs more than one of a β-VAE, and its number of epochs is cut by the budget's price: what it costs
at most against `fit`, one model after the other, and against a `sweep`, which trains β-VAEs for less. Both are measured first.

Every training is written to --out as it ends, and not repeated by a run of the same budget that finds it there.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import Record
from torch import nn

from nbvae import data, estimators, models, objectives, training
from nbvae.models import multi_beta

FOUR = (0.01, 0.1, 1.0, 10.0)
TEN = tuple(float(f"{beta:.4g}") for beta in np.geomspace(0.01, 10, 10))
SIX = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
# Wider than the βs that are compared: at the ends of its range a model sees neighbours on one side only.
MNIST = {"dataset": "mnist", "images": 50_000, "batch": 64, "range": (0.005, 20.0), "samples": 1, "power": 0.0}
MNIST |= {"price": {"fit": 1.3, "sweep": 1.7}}
RESIDUAL = MNIST | {"network": "residual", "hidden": (64, 128, 256), "latent_dim": 32, "betas": FOUR}
BUDGETS: dict[str, dict[str, Any]] = {
    "digits": {
        **{"dataset": "digits", "images": 1200, "batch": 64, "range": (0.03, 15.0), "samples": 10, "betas": SIX},
        **{"network": "mlp", "hidden": (128, 128), "latent_dim": 8, "epochs": 60},
        **{"lrs": (1e-3, 3e-3, 1e-2), "power": 0.25},
        "ablations": (
            *(("film", 0.0), ("film", 0.5), ("gates", 0.0), ("gates", 0.5)),
            *(("film with a free variance", 0.25), ("film of log β alone", 0.25)),
        ),
    },
    "quick": MNIST
    | {"network": "mlp", "hidden": (200,), "latent_dim": 16, "betas": TEN}
    | {"images": 10_000, "epochs": 4, "lrs": (2e-3, 4e-3, 8e-3), "ablations": (("gates", 0.0),), "compute": (("fit", 0.0),)},
    "mlp": MNIST
    | {"network": "mlp", "hidden": (400, 400), "latent_dim": 32, "betas": TEN}
    | {
        "epochs": 8,
        "lrs": (5e-4, 1e-3, 2e-3),
        "ablations": (("film", 0.25), ("gates", 0.0), ("gates", 0.25)),
        "compute": (("fit", 0.0), ("fit", 0.25), ("sweep", 0.0)),
    },
    "residual_part": RESIDUAL | {"images": 10_000, "epochs": 2, "lrs": (1e-3, 2e-3, 4e-3), "ablations": (("gates", 0.0),)},
    "residual": RESIDUAL | {"epochs": 8, "lrs": (5e-4, 1e-3, 2e-3), "ablations": (("gates", 0.0),)},
}


class Race:
    def __init__(self, budget: str, seeds: list[int], out: Path):
        self.plan, self.seeds = BUDGETS[budget], seeds
        command = f"benchmarks/multi_beta.py --budget {budget} --seeds {' '.join(map(str, seeds))}"
        self.record = Record(out, command, budget=budget, plan=self.plan)
        whole = data.load(self.plan["dataset"])
        some = whole.train[: self.plan["images"]]
        self.dataset = data.Dataset(whole.name, some, whole.validation, whole.test, binarize=whole.binarize)
        self.shape: dict[str, Any] = {"shape": whole.shape} | {
            name: self.plan[name] for name in ("network", "latent_dim", "hidden")
        }

    def config(self, lr: float, epochs: int, seed: int = 0) -> training.TrainConfig:
        return training.TrainConfig(epochs, self.plan["batch"], lr, "one_cycle", seed)

    def measured(self, model: Any, beta: float) -> dict[str, float]:
        found = {"beta": beta}
        for split, x in (("val", self.dataset.validation), ("test", self.dataset.test)):
            point = estimators.evaluate(model, x, beta, n_samples=self.plan["samples"])
            found |= {f"{split}_rate": point.rate, f"{split}_distortion": point.distortion, f"{split}_loss": point.loss()}
        return found

    def points(self, key: str, make: Callable[[], tuple[list[dict[str, float]], float]]) -> list[dict[str, float]]:
        """The points of one training, which is made only if it is not known; `make` gives them and its seconds."""

        def entry() -> dict[str, Any]:
            points, seconds = make()
            print(f"{key}: {seconds:.0f} s", flush=True)
            return {"points": points, "seconds": seconds}

        return self.record.entry(entry, "runs", key)["points"]

    def dedicated(self, seed: int) -> dict[float, dict[str, float]]:
        """The best of the learning rates on the validation images, for each β on its own."""

        def train(lr: float) -> tuple[list[dict[str, float]], float]:
            make = functools.partial(models.VAE, **self.shape)
            config, betas = self.config(lr, self.plan["epochs"], seed), self.plan["betas"]
            if self.plan["network"] == "mlp":
                runs = _trained(lambda: training.sweep(make, self.dataset, betas=betas, seeds=[seed], config=config))
            else:  # convolutions cannot be swept
                runs = []
                for beta in betas:
                    torch.manual_seed(seed)
                    fit = functools.partial(training.fit, make(), self.dataset, objectives.BetaVAE(beta), config)
                    runs += _trained(lambda fit=fit: [fit()])
            found = [self.measured(run.model, beta) for run, beta in zip(runs, betas, strict=True)]
            return found, sum(run.seconds for run in runs)

        def points(lr: float) -> list[dict[str, float]]:
            return self.points(f"dedicated lr={lr:g} seed={seed}", lambda: train(lr))

        every = list(zip(*self.search(points), strict=True))
        return {best["beta"]: best for best in (min(same, key=lambda point: point["val_loss"]) for same in every)}

    def search(self, points: Callable[[float], list[dict[str, float]]], together: bool = False) -> list[list[dict[str, float]]]:
        """The points of every learning rate tried: the budget's, and further ones while the best is an edge for some point.

        With `together` the best is that of all points, by their sum, and not of each.
        """
        lrs = list(self.plan["lrs"])
        tried = [points(lr) for lr in lrs]
        while True:
            losses = np.array([[point["val_loss"] for point in each] for each in tried])
            best = losses.sum(1, keepdims=True).argmin(0) if together else losses.argmin(0)
            if (best == len(lrs) - 1).any():
                lrs.append(float(f"{lrs[-1] ** 2 / lrs[-2]:.2g}"))
                tried.append(points(lrs[-1]))
            elif (best == 0).any():
                lrs.insert(0, float(f"{lrs[0] ** 2 / lrs[1]:.2g}"))
                tried.insert(0, points(lrs[0]))
            else:
                return tried

    def model(self, conditioning: str) -> models.MultiBetaVAE:
        kind = FreeVariance if conditioning == "film with a free variance" else models.MultiBetaVAE
        model = kind(**self.shape, beta_range=self.plan["range"], conditioning=conditioning.split()[0])
        if conditioning == "film of log β alone":
            _single_feature(model)
        return model

    def multi(self, kind: tuple[str, float], epochs: int, betas: tuple[float, ...], seed: int) -> list[dict[str, float]]:
        """The best of the learning rates by the mean validation loss over `betas`."""
        conditioning, power = kind

        def train(lr: float) -> tuple[list[dict[str, float]], float]:
            torch.manual_seed(seed)
            model = self.model(conditioning)
            fit = functools.partial(training.fit, model, self.dataset, objectives.MultiBeta(power))
            [run] = _trained(lambda: [fit(self.config(lr, epochs, seed))])
            return [self.measured(model.at(beta), beta) for beta in self.plan["betas"]], run.seconds

        def points(lr: float) -> list[dict[str, float]]:
            key = f"{conditioning} power={power:g} epochs={epochs} lr={lr:g} seed={seed}"
            return [point for point in self.points(key, lambda: train(lr)) if point["beta"] in betas]

        return min(self.search(points, together=True), key=lambda points: sum(point["val_loss"] for point in points))

    def cost(self) -> dict[str, float]:
        """Seconds of a multi-β epoch over those of a β-VAE's, by `fit` and in a `sweep` of four: medians of five rounds."""

        def measure() -> dict[str, float]:
            part = self.dataset.train[:5_000]
            some = data.Dataset("part", part, part, part, binarize="static")
            plain = functools.partial(models.VAE, **self.shape)
            # Some 1,200 steps: a run's start is not the price of a step, and a moment's rest of the machine not that of a run.
            # Convolutions need no such care.
            epochs = round(80_000 / len(part)) if self.plan["network"] == "mlp" else 1
            config, ratios = self.config(1e-3, epochs), []
            for _ in range(6):
                multi = models.MultiBetaVAE(**self.shape, beta_range=self.plan["range"])
                seconds = [_seconds(lambda m=multi: training.fit(m, some, objectives.MultiBeta(), config))]
                seconds.append(_seconds(lambda: training.fit(plain(), some, objectives.VAE(), config)))
                if self.plan["network"] == "mlp":
                    seconds.append(_seconds(lambda: training.sweep(plain, some, betas=FOUR, config=config)) / 4)
                ratios.append([seconds[0] / other for other in seconds[1:]])
            medians = map(statistics.median, zip(*ratios[1:], strict=True))
            return dict(zip(("fit", "sweep"), medians, strict=False))

        return self.record.entry(measure, "cost")

    def race(self, title: str, kind: tuple[str, float], epochs: int, betas: tuple[float, ...]) -> None:
        """Print and keep a race's table: means over seeds, and the standard error of the regret where there are several."""
        theirs = [self.dedicated(seed) for seed in self.seeds]
        ours = [self.multi(kind, epochs, betas, seed) for seed in self.seeds]
        table = {
            name: np.array([[point[f"test_{name}"] for point in points] for points in ours])
            for name in ("rate", "distortion", "loss")
        }
        best = np.array([[each[beta]["test_loss"] for beta in betas] for each in theirs])
        regret = table["loss"] - best
        error = regret.std(0, ddof=1) / len(self.seeds) ** 0.5 if len(self.seeds) > 1 else np.full(len(betas), np.nan)
        print(f"\n{title}\n      β      R      D   D+βR  dedicated  regret")
        for index, beta in enumerate(betas):
            rate, distortion, loss = (values[:, index].mean() for values in table.values())
            print(
                f"{beta:7.4g} {rate:6.1f} {distortion:6.1f} {loss:6.1f} {best[:, index].mean():10.1f} "
                f"{regret[:, index].mean():+7.2f} ± {error[index]:.2f}"
            )
        share = (regret.mean(0) / best.mean(0)).max()
        print(
            f"mean {regret.mean():+.2f}, largest {regret.mean(0).max():+.2f} nats, {100 * share:+.1f} % of the dedicated loss"
        )
        kept = {
            **{"conditioning": kind[0], "power": kind[1], "epochs": epochs, "seeds": self.seeds, "betas": betas},
            **{name: values.tolist() for name, values in table.items()},
            **{"dedicated": best.tolist(), "regret": regret.tolist()},
        }
        self.record.put(kept, "races", title)


class FreeVariance(models.MultiBetaVAE):
    """The posterior's log-variance as the encoder gives it, without the response to β that the linear optimum has."""

    def encode(self, x: torch.Tensor, condition: multi_beta.Condition) -> torch.distributions.Independent:
        mean, log_variance = self.encoder(self._flat(x), condition.encoder).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)


class Standard(nn.Module):
    """log β alone, from −1 to 1 over the range, in place of the sixteen features."""

    def __init__(self, beta_range: tuple[float, float]):
        super().__init__()
        low, high = np.log(beta_range)
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    def forward(self, log_beta: torch.Tensor) -> torch.Tensor:
        return (log_beta - self.middle) / self.half


def _single_feature(model: models.MultiBetaVAE) -> None:
    response: Any = model.response
    modulation = nn.Linear(1, response.modulation.out_features)
    nn.init.zeros_(modulation.weight)
    modulation.bias.data.copy_(response.modulation.bias.data)
    response.features, response.modulation = Standard(model.beta_range), modulation


def _trained(train: Callable[[], list[training.Run]]) -> list[training.Run]:
    """A run that diverged counts as it was at its last good epoch: too large a learning rate is part of the search."""
    try:
        return train()
    except training.Diverged as stopped:
        return stopped.runs


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Race one multi-β model against dedicated β-VAEs.")
    parser.add_argument("--budget", choices=BUDGETS, default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    race = Race(options.budget, options.seeds, options.out or Path(f"multi_beta_{options.budget}.json"))
    plan, cost = race.plan, race.cost()
    print(", ".join(f"a multi-β step costs {ratio:.2f} times one of a β-VAE ({way})" for way, ratio in cost.items()))
    epochs, ours = plan["epochs"], ("film", plan["power"])
    few = FOUR if plan["dataset"] == "mnist" else plan["betas"]
    race.race("equal steps", ours, epochs, few)
    for kind in plan["ablations"]:
        race.race(f"equal steps, {kind[0]} and power {kind[1]:g}", kind, epochs, few)
    for way, power in plan.get("compute", ()):
        for betas, name in ((FOUR, "four"), (TEN, "ten")):
            title = f"equal compute for {name} βs, power {power:g}" + (", against a sweep" if way == "sweep" else "")
            race.race(title, ("film", power), int(len(betas) * epochs / plan["price"][way]), betas)


if __name__ == "__main__":
    main()
