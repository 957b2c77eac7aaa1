"""One multi-β model against a β-VAE for each β: regret of D + βR on the test images, and seconds.

    python benchmarks/multi_beta.py [--budget digits|quick|mlp|residual_part|residual] [--seeds 0] [--out results.json]

Everything in a race has the same architecture, batch size and schedule. Learning rates are the best of the budget's three on
the validation images: for each β of the β-VAEs, by the mean over βs for a multi-β model. Races: equal steps, also with other
weights β^(−power) and with the gates of the Multi-Rate VAE; and, on MNIST, equal compute for a curve of four βs and of ten.
Compute is what `fit` spends, one model after the other: a multi-β step costs more than one of a β-VAE, and the number of epochs
is cut by the ratio of seconds, which is measured first. The ratio to β-VAEs of one `sweep`, which cost less, is recorded too.

Every training is written to --out as it ends, and not repeated by a run of the same budget that finds it there.
"""

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nbvae
from nbvae import data, estimators, models, objectives, training

FOUR = (0.01, 0.1, 1.0, 10.0)
TEN = tuple(float(f"{beta:.4g}") for beta in np.geomspace(0.01, 10, 10))
SIX = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
# Wider than the βs that are compared: at the ends of its range a model sees neighbours on one side only.
MNIST = {"dataset": "mnist", "images": 50_000, "batch": 64, "range": (0.005, 20.0), "samples": 1, "power": 0.0}
RESIDUAL = MNIST | {"network": "residual", "hidden": (64, 128, 256), "latent_dim": 32, "betas": FOUR}
BUDGETS: dict[str, dict[str, Any]] = {
    "digits": {
        **{"dataset": "digits", "images": 1200, "batch": 64, "range": (0.03, 15.0), "samples": 10, "betas": SIX},
        **{"network": "mlp", "hidden": (128, 128), "latent_dim": 8, "epochs": 60},
        **{"lrs": (1e-3, 3e-3, 1e-2), "power": 0.25},
        "ablations": (("film", 0.0), ("film", 0.5), ("gates", 0.0), ("gates", 0.5)),
    },
    "quick": MNIST
    | {"network": "mlp", "hidden": (200,), "latent_dim": 16, "betas": TEN}
    | {"images": 10_000, "epochs": 4, "lrs": (2e-3, 4e-3, 8e-3), "ablations": (("gates", 0.0),), "compute": (0.0,)},
    "mlp": MNIST
    | {"network": "mlp", "hidden": (400, 400), "latent_dim": 32, "betas": TEN}
    | {
        "epochs": 8,
        "lrs": (5e-4, 1e-3, 2e-3),
        "ablations": (("film", 0.25), ("gates", 0.0), ("gates", 0.25)),
        "compute": (0.0, 0.25),
    },
    "residual_part": RESIDUAL | {"images": 10_000, "epochs": 2, "lrs": (1e-3, 2e-3, 4e-3), "ablations": (("gates", 0.0),)},
    "residual": RESIDUAL | {"epochs": 8, "lrs": (5e-4, 1e-3, 2e-3), "ablations": (("gates", 0.0),)},
}


class Race:
    def __init__(self, budget: str, seeds: list[int], out: Path):
        self.plan, self.seeds, self.out = BUDGETS[budget], seeds, out
        whole = data.load(self.plan["dataset"])
        some = whole.train[: self.plan["images"]]
        self.dataset = data.Dataset(whole.name, some, whole.validation, whole.test, binarize=whole.binarize)
        self.shape: dict[str, Any] = {"shape": whole.shape} | {
            name: self.plan[name] for name in ("network", "latent_dim", "hidden")
        }
        plan = json.loads(json.dumps(self.plan))
        self.known = json.loads(out.read_text()) if out.exists() else {"budget": budget, "plan": plan, "runs": {}}
        if self.known["plan"] != plan:
            raise SystemExit(f"{out} holds another budget or an older plan: give another --out, or remove it")
        self.known["provenance"] = {
            "command": f"benchmarks/multi_beta.py --budget {budget} --seeds {' '.join(map(str, seeds))}",
            "nbvae": nbvae.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }

    def config(self, lr: float, epochs: int, seed: int = 0) -> training.TrainConfig:
        return training.TrainConfig(epochs, self.plan["batch"], lr, "one_cycle", seed)

    def measured(self, model: Any, beta: float) -> dict[str, float]:
        found = {"beta": beta}
        for split, x in (("val", self.dataset.validation), ("test", self.dataset.test)):
            point = estimators.evaluate(model, x, beta, n_samples=self.plan["samples"])
            found |= {f"{split}_rate": point.rate, f"{split}_distortion": point.distortion, f"{split}_loss": point.loss()}
        return found

    def keep(self, key: str, points: list[dict[str, float]], seconds: float) -> None:
        self.known["runs"][key] = {"points": points, "seconds": seconds}
        self.save()
        print(f"{key}: {seconds:.0f} s", flush=True)

    def save(self) -> None:
        self.out.write_text(json.dumps(self.known, indent=1) + "\n")

    def dedicated(self, seed: int) -> dict[float, dict[str, float]]:
        """The best of the learning rates on the validation images, for each β on its own."""
        every = []
        for lr in self.plan["lrs"]:
            key = f"dedicated lr={lr:g} seed={seed}"
            if key not in self.known["runs"]:
                make = functools.partial(models.VAE, **self.shape)
                config, betas = self.config(lr, self.plan["epochs"], seed), self.plan["betas"]
                if self.plan["network"] == "mlp":
                    runs = training.sweep(make, self.dataset, betas, seeds=[seed], config=config)
                else:  # convolutions cannot be swept
                    runs = []
                    for beta in betas:
                        torch.manual_seed(seed)
                        runs.append(training.fit(make(), self.dataset, objectives.BetaVAE(beta), config))
                points = [self.measured(run.model, beta) for run, beta in zip(runs, betas, strict=True)]
                self.keep(key, points, sum(run.seconds for run in runs))
            every.append(self.known["runs"][key]["points"])
        return {
            best["beta"]: best for best in (min(same, key=lambda point: point["val_loss"]) for same in zip(*every, strict=True))
        }

    def multi(self, kind: tuple[str, float], epochs: int, betas: tuple[float, ...], seed: int) -> list[dict[str, float]]:
        """The best of the learning rates by the mean validation loss over `betas`."""
        conditioning, power = kind
        tried = []
        for lr in self.plan["lrs"]:
            key = f"{conditioning} power={power:g} epochs={epochs} lr={lr:g} seed={seed}"
            if key not in self.known["runs"]:
                torch.manual_seed(seed)
                model = models.MultiBetaVAE(**self.shape, beta_range=self.plan["range"], conditioning=conditioning)
                run = training.fit(model, self.dataset, objectives.MultiBeta(power), self.config(lr, epochs, seed))
                self.keep(key, [self.measured(model.at(beta), beta) for beta in self.plan["betas"]], run.seconds)
            tried.append([point for point in self.known["runs"][key]["points"] if point["beta"] in betas])
        return min(tried, key=lambda points: sum(point["val_loss"] for point in points))

    def cost(self) -> dict[str, float]:
        """Seconds of a multi-β epoch over those of a β-VAE's, by `fit` and in a `sweep` of four: medians of five rounds."""
        if "cost" not in self.known:
            part = self.dataset.train[:5_000]
            some = data.Dataset("part", part, part, part, binarize="static")
            plain = functools.partial(models.VAE, **self.shape)
            config, ratios = self.config(1e-3, max(1, 5_000 // len(part))), []
            for _ in range(6):
                multi = models.MultiBetaVAE(**self.shape, beta_range=self.plan["range"])
                seconds = [_seconds(lambda m=multi: training.fit(m, some, objectives.MultiBeta(), config))]
                seconds.append(_seconds(lambda: training.fit(plain(), some, objectives.VAE(), config)))
                if self.plan["network"] == "mlp":
                    seconds.append(_seconds(lambda: training.sweep(plain, some, FOUR, config=config)) / 4)
                ratios.append([seconds[0] / other for other in seconds[1:]])
            medians = map(statistics.median, zip(*ratios[1:], strict=True))
            self.known["cost"] = dict(zip(("fit", "sweep"), medians, strict=False))
            self.save()
        return self.known["cost"]

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
        self.known.setdefault("races", {})[title] = {
            **{"conditioning": kind[0], "power": kind[1], "epochs": epochs, "seeds": self.seeds, "betas": betas},
            **{name: values.tolist() for name, values in table.items()},
            **{"dedicated": best.tolist(), "regret": regret.tolist()},
        }
        self.save()


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
    if plan.get("compute"):
        for betas, name in ((FOUR, "four"), (TEN, "ten")):
            for power in plan["compute"]:
                title = f"equal compute for {name} βs, power {power:g}"
                race.race(title, ("film", power), int(len(betas) * epochs / cost["fit"]), betas)


if __name__ == "__main__":
    main()
