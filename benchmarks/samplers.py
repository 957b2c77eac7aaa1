"""Six samplers of one model of many β, at its smallest β: Fréchet distance to the test images, with intervals, over seeds.

    python benchmarks/samplers.py [--budget digits|mnist] [--seeds 0 1 2] [--out results.json]

The decoder is the same for all; what differs is where z comes from. Beside it, a β-VAE of that β alone. Features are those of a
classifier of the labels. Every seed is written to --out as it ends, and not repeated by a run of the same budget.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import torch
from _record import Record

from nbvae import data, estimators, metrics, models, objectives, samplers, training

BUDGETS: dict[str, dict[str, Any]] = {
    "digits": {
        **{"dataset": "digits", "latent_dim": 8, "hidden": (128, 128), "range": (0.03, 16.0), "power": 0.25},
        **{"epochs": 120, "batch": 64, "lr": 4e-3, "fitted": 1200, "draws": 5, "components": 10, "images": 5000},
        "ladder": (12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.2, 0.1, 0.05),
    },
    "mnist": {
        **{"dataset": "mnist", "latent_dim": 16, "hidden": (400, 400), "range": (0.03, 25.0), "power": 0.0},
        **{"epochs": 12, "batch": 128, "lr": 2e-3, "fitted": 10_000, "draws": 2, "components": 10, "images": 10_000},
        "ladder": (20.0, 10.0, 5.0, 2.5, 1.2, 0.6, 0.3, 0.1, 0.05),
    },
}


def measure(plan: dict[str, Any], dataset: data.Dataset, extract: Any, seed: int) -> dict[str, Any]:
    shape: dict[str, Any] = {"shape": dataset.shape, "latent_dim": plan["latent_dim"], "hidden": plan["hidden"]}
    config = training.TrainConfig(plan["epochs"], plan["batch"], plan["lr"], "one_cycle", seed)
    ladder, beta = plan["ladder"], plan["ladder"][-1]
    torch.manual_seed(seed)
    many = models.MultiBetaVAE(**shape, beta_range=plan["range"])
    training.fit(many, dataset, objectives.MultiBeta(plan["power"]), config)
    torch.manual_seed(seed)
    alone = models.VAE(**shape)
    training.fit(alone, dataset, objectives.BetaVAE(beta), config)

    view, x = many.at(beta), dataset.train[: plan["fitted"]]
    how = {"n_components": plan["components"], "draws": plan["draws"], "seed": seed}
    made: dict[str, Any] = {
        "prior": lambda: samplers.Prior(view),
        "recursive": lambda: samplers.Recursive(many, ladder),
        "recursive, 5 rounds": lambda: samplers.Recursive(many, ladder, rounds=5),
        "recursive, x drawn": lambda: samplers.Recursive(many, ladder, draw_x=True),
        "chain": lambda: samplers.Chain(many, x, ladder, **how),
        "chain, 1 component": lambda: samplers.Chain(many, x, ladder, **how | {"n_components": 1}),
        "mixture": lambda: samplers.Mixture(view, x, **how),
        "mixture, 1 component": lambda: samplers.Mixture(view, x, **how | {"n_components": 1}),
        "second stage": lambda: samplers.SecondStage(view, x, draws=plan["draws"], seed=seed),
        "aggregate": lambda: samplers.Aggregate(view, dataset.train),
        "β-VAE of this β, prior": lambda: samplers.Prior(alone),
        "β-VAE of this β, mixture": lambda: samplers.Mixture(alone, x, **how),
    }
    real = extract(dataset.test)
    found: dict[str, Any] = {"rate": estimators.evaluate(view, dataset.test, beta).rate}
    for name, make in made.items():
        start = time.perf_counter()
        images = make().sample(plan["images"], torch.Generator().manual_seed(seed))
        seconds = time.perf_counter() - start
        features = extract(images)
        distance = metrics.frechet_distance(features, real, n_bootstrap=200, seed=seed)
        found[name] = {"frechet": distance._asdict(), "seconds": seconds}
        part = slice(2000)  # neighbours of all pairs
        shares = metrics.coverage(real[part], features[part])._asdict()
        found[name]["coverage"] = {key: each.value for key, each in shares.items()}
        print(f"seed {seed}, {name}: {distance}; {seconds:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare samplers of one model of many β.")
    parser.add_argument("--budget", choices=BUDGETS, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(f"samplers_{options.budget}.json")
    plan = BUDGETS[options.budget]
    command = f"benchmarks/samplers.py --budget {options.budget} --seeds {' '.join(map(str, options.seeds))}"
    record = Record(out, command, budget=options.budget, plan=plan)
    dataset = data.load(plan["dataset"])
    extract = metrics.classifier(dataset)
    some = metrics.frechet_distance(extract(dataset.train[: plan["images"]]), extract(dataset.test), n_bootstrap=200)
    # All seeds are measured by one classifier, and against what images that no model has made have.
    record.share(record.provenance, 1e-4, accuracy=extract.accuracy, real=len(dataset.test), train=some._asdict())
    for seed in options.seeds:
        record.entry(functools.partial(measure, plan, dataset, extract, seed), "seeds", str(seed))


if __name__ == "__main__":
    main()
