"""Chapter 6 with more training and more models: what sampling from the prior costs, and a pair of equal rate and distortion.

    python benchmarks/third_axis.py [--out third_axis.json]

Digits, half an hour on one core. β-VAEs, models of many β, weights on ② and ④ and the
objectives of chapter 2, each after few and after many passes: terms of the rate on training images, moments of q(z), Fréchet
distances of prior and of aggregate samples to the test images. The pair's weights are searched on seeds of their own.
What is known already is not repeated: each part is written to --out as it ends.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import Record

from nbvae import data, estimators, metrics, models, objectives, samplers, training

PLAN: dict[str, Any] = {
    "betas": [0.01, 0.03, 0.1, 0.3, 1.0, 1.6, 3.2],
    "weights": [[0.4, 2.5], [0.6, 0.18], [0.6, 0.28], [0.75, 0.18], [0.75, 0.28], [1.0, 0.3], [1.0, 3.0], [2.0, 0.5]],
    "passes": [24, 240],
    "pair_passes": [40, 400],
    **{"seeds": 3, "pair_seeds": 64, "search_seeds": 64, "few_seeds": 16, "heavy": [0.4, 2.5], "tolerance": [0.1, 0.05]},
    **{"images": 2000, "reference": 1200, "latent_dim": 8, "pair_latent_dim": 4, "pair_hidden": [64]},
}
OBJECTIVES: dict[str, Any] = {
    "VAE": objectives.VAE(),
    "β-VAE, β = 2": objectives.BetaVAE(2.0),
    "DIP-VAE I": objectives.DIPVAEI(off_diagonal=10, diagonal=5),
    "DIP-VAE II": objectives.DIPVAEII(off_diagonal=10, diagonal=5),
    "InfoVAE, λ = 30": objectives.InfoVAE(alpha=0.0, lam=30.0),
    "capacity, C = 3": objectives.Capacity(gamma=5, capacity=3.0),
    "AnchorVAE, λ = .5": objectives.AnchorVAE(anchors=(0,), lam=0.5),
    "Inf. Dropout, γ = 3": objectives.InformationDropout(beta=1.0, gamma=3.0),
    "FactorVAE, γ = 10": objectives.FactorVAE(gamma=10.0),
    "β-TCVAE, β = 6": objectives.BetaTCVAE(beta=6.0),
    "HFVAE, β = 6, γ = 2": objectives.HFVAE(groups=((0, 1, 2, 3), (4, 5, 6, 7)), beta=6.0, gamma=2.0),
}


class Study:
    def __init__(self, out: Path):
        self.record, self.dataset = Record(out, "benchmarks/third_axis.py", plan=PLAN), data.load("digits")
        self.extract = metrics.classifier(self.dataset)
        self.real, self.train = self.extract(self.dataset.test), self.dataset.draw(self.dataset.train)
        self.reference = self.train[: PLAN["reference"]]
        # What images that no model has made have: training images against test images.
        train = metrics.frechet_distance(self.extract(self.dataset.train), self.real, n_bootstrap=200)
        floor = {"accuracy": self.extract.accuracy, "real": len(self.real), "train": train._asdict()}
        self.record.share(self.record.provenance, 1e-4, **floor)

    def sweep(self, make: Callable[[], Any], kinds: Sequence[Any], seeds: Sequence[int], passes: int, rate: float) -> list[Any]:
        config = training.TrainConfig(passes, 100 if rate > 4e-3 else 64, rate, "one_cycle")
        return training.sweep(make, self.dataset, objectives=kinds, seeds=seeds, config=config)

    def weighed(self, weights: Sequence[Sequence[float]], seeds: Sequence[int], passes: int) -> list[Any]:
        """Models of D + a ② + w ④, one after the other for each (a, w)."""
        make = functools.partial(models.VAE, self.dataset.shape, PLAN["pair_latent_dim"], hidden=PLAN["pair_hidden"])
        kinds = [objectives.BetaTCVAE(a, w, w, "stratified") for a, w in weights]
        return self.sweep(make, kinds, seeds, passes, 6e-3)

    def measured(self, model: Any, setting: str, network: str) -> dict[str, Any]:
        """One row of the record."""
        terms = estimators.decompose(model, self.reference, n_samples=9)
        moments = estimators.moments(model, self.train)
        variance = moments.second_moment - moments.mean.square()
        row: dict[str, Any] = {"setting": setting, "network": network}
        for name in (
            "rate",
            "distortion",
            "mutual_information",
            "mutual_information_upper",
            "marginal_kl",
            "marginal_kl_lower",
        ):
            row[name] = getattr(terms, name)
        row["second_moment"] = (moments.second_moment - 1).abs().max().item()
        row["mean"] = moments.mean.abs().max().item()
        # KL of N(mean, variance) of each latent to the prior: what ④ would be if single latents' mean and scale were all.
        row["scale"] = 0.5 * (moments.second_moment - 1 - variance.log()).sum().item()
        for name, sampler in (("prior", samplers.Prior(model)), ("aggregate", samplers.Aggregate(model, self.reference))):
            images = sampler.sample(PLAN["images"], torch.Generator().manual_seed(0))
            row[name] = metrics.frechet_distance(self.extract(images), self.real).value
        return row

    def family(self, name: str, train: Callable[[], Iterable[tuple[Any, str, str]]]) -> None:
        found = self.record.entry(lambda: [self.measured(*each) for each in train()], "models", name)
        print(f"{name}: {len(found)} models", flush=True)

    def families(self, passes: int) -> None:
        """All but the pair."""
        shape, seeds = (self.dataset.shape, PLAN["latent_dim"]), range(PLAN["seeds"])
        betas = PLAN["betas"]

        def plain() -> Iterable[tuple[Any, str, str]]:
            runs = self.sweep(
                functools.partial(models.VAE, *shape), [objectives.BetaVAE(b) for b in betas], seeds, passes, 4e-3
            )
            return [(run.model, f"{run.objective.beta:g}", f"{run.objective.beta:g}/{run.config.seed}") for run in runs]

        def many() -> Iterable[tuple[Any, str, str]]:
            span = (0.6 * betas[0], 5 * betas[-1])
            make = functools.partial(models.MultiBetaVAE, *shape, beta_range=span)
            runs = self.sweep(make, [objectives.MultiBeta()], seeds, passes, 4e-3)
            return [(run.model.at(beta), f"{beta:g}", str(run.config.seed)) for run in runs for beta in betas]

        def weighed() -> Iterable[tuple[Any, str, str]]:
            runs = self.weighed(PLAN["weights"], seeds, passes)
            names = [f"a = {a:g}, w = {w:g}" for a, w in PLAN["weights"] for _ in seeds]
            return [(run.model, name, f"{name}/{run.config.seed}") for run, name in zip(runs, names, strict=True)]

        def published() -> Iterable[tuple[Any, str, str]]:
            for name, kind in OBJECTIVES.items():
                for run in self.sweep(functools.partial(models.VAE, *shape), [kind], seeds, passes, 1e-2):
                    yield run.model, name, f"{name}/{run.config.seed}"

        for name, train in (("β-VAE", plain), ("many β", many), ("weights", weighed), ("objectives", published)):
            self.family(f"{name}, {passes} passes", train)

    def pair(self, passes: int) -> None:
        """Weights (a, w), w < a, at which R and D are those of the heavy model: searched on some seeds, measured on others."""
        found = self.record.entry(lambda: self.searched(passes), "pairs", str(passes))
        for name in ("rate", "distortion", "mutual_information", "marginal_kl", "marginal_kl_lower", "second_moment", "scale"):
            each = [np.array([row[name] for row in found[kind]]) for kind in ("heavy", "light")]
            apart = each[1] - each[0]
            error = apart.std(ddof=1) / math.sqrt(len(apart))
            print(f"  {name}: {each[0].mean():.3f}, {each[1].mean():.3f}, difference {apart.mean():+.3f} ± {error:.3f}")

    def searched(self, passes: int) -> dict[str, Any]:
        """The entry of a pair: the light model's weights, the search for them, both models' rows."""
        heavy, seeds = PLAN["heavy"], range(PLAN["pair_seeds"])
        others = range(1000, 1000 + PLAN["search_seeds"])

        def place(weights: Sequence[Sequence[float]], some: Sequence[int]) -> np.ndarray:
            runs = self.weighed(weights, some, passes)
            points = [estimators.evaluate(run.model, self.reference, n_samples=9) for run in runs]
            return np.array([[p.rate, p.distortion] for p in points]).reshape(len(weights), -1, 2).mean(1)

        # R and D as linear functions of log a and log w; then secants (Broyden 1965), with few seeds and with more.
        few = others[: PLAN["few_seeds"]]
        grid = [[0.6, 0.2], [0.6, 0.35], [0.75, 0.2], [0.75, 0.35]]
        target, *places = place([heavy, *grid], few)
        design = np.column_stack([np.ones(len(grid)), np.log(grid)])
        constant, *slopes = np.linalg.lstsq(design, np.array(places), rcond=None)[0]
        slope = np.transpose(slopes)
        logs, tried = np.linalg.solve(slope, target - constant), []
        for some, tolerance in zip((few, others), PLAN["tolerance"], strict=True):
            target = target if some is few else place([heavy], some)[0]
            before, move = np.zeros(2), np.zeros(2)
            for _ in range(10):
                found = place([np.exp(logs).tolist()], some)[0] - target
                tried.append([len(some), *np.exp(logs).tolist(), *found.tolist()])
                print(
                    f"{passes} passes: {len(some)} seeds, a and w {np.exp(logs).round(3)}: ΔR, ΔD {found.round(3)}", flush=True
                )
                if np.abs(found).max() <= tolerance:
                    break
                if move.any() and np.abs(found).max() > 0.2:  # nearer it is noise that would be learned
                    slope = slope + np.outer(found - before - slope @ move, move) / (move @ move)
                before, move = found, np.clip(np.linalg.solve(slope, -found), -0.5, 0.5)
                logs = logs + move
            else:
                raise SystemExit(f"no weights with the heavy model's rate and distortion after {passes} passes")
        light = np.exp(logs).tolist()
        rows = {
            name: [self.measured(run.model, name, str(run.config.seed)) for run in self.weighed([weights], seeds, passes)]
            for name, weights in (("heavy", heavy), ("light", light))
        }
        return {"light_weights": light, "search": tried, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Rate, distortion, ④ and the cost of sampling from the prior, over many models."
    )
    parser.add_argument("--out", type=Path, default=Path("third_axis.json"))
    study = Study(parser.parse_args().out)
    for passes in PLAN["passes"]:
        study.families(passes)
    for passes in PLAN["pair_passes"]:
        study.pair(passes)


if __name__ == "__main__":
    main()
