"""Ways to draw z for one decoder: how near their images come to the test images, and what they make of a code's length.

One model of many β is trained, and looked at with its smallest β. The decoder is the same for all ways; what differs is where
z comes from. Beside it stands a β-VAE of that β alone. Images are compared with the test images by the Fréchet distance, in the
features of a classifier of the labels, beside what as many training images have: no sampler can be asked for less. Where a way
is a density, the rate under it is what an example costs if that density takes the prior's place.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from nbvae import estimators, metrics, models, objectives, results, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.plan import Plan as Common
from studies.plan import accept_labels, accept_ladder, load
from studies.record import Record
from studies.third_axis import Rescaled

QUESTION = "Where should z come from: which way to draw it gives the best images of one decoder?"
CHAPTER = "07_alignment"
DATASETS = ("digits", "mnist", "glyphs")
MANY, ALONE, NONE = "one model of many β", "β-VAE", "no model"
BASE, PRIOR, FLOOR = "mixture", "prior", "training images"
DRAWN = "recursive, x drawn"
LEAST = 0.1  # a logarithm of a ratio that is too small to be claimed
PLACE = ["than", "objective", "sampler"]


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `ladder`: βs from coarse to fine; images are drawn at the last.
    - `lowest`, `highest`: the range of β that the model is trained for.
    - `power`: of β in the weights of its loss, `objectives.MultiBeta`.
    - `passes`: over the training images; some seeds are also trained for twice as many.
    - `again`: how many of the seeds.
    - `latent_dim`, `hidden`, `batch`, `lr`: of both models and their training, under a one-cycle schedule.
    - `fitted`: how many training images densities of z are fitted to, at most, with `draws` of z for each.
    - `components`: of the mixtures of Gaussians.
    - `rounds`: how often each step of the longer recursion decodes and encodes.
    - `drawn`: the number of images from each sampler.
    - `neighbours`, `nearest`: the k of precision and recall, and how many images they are of, at most.
    - `resamplings`: of the images, for the errors of the distances.
    """

    ladder: tuple[float, ...] = (12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.2, 0.1, 0.05)
    lowest: float = 0.03
    highest: float = 16.0
    power: float = 0.25
    passes: int = 400
    again: int = 10
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 64
    lr: float = 4e-3
    fitted: int = 1200
    draws: int = 5
    components: int = 10
    rounds: int = 5
    drawn: int = 1200
    neighbours: int = 5
    nearest: int = 2000
    resamplings: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        accept_ladder(self.ladder, self.lowest, self.highest)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"images": 10_000, "passes": 60, "hidden": (400, 400), "latent_dim": 16, "batch": 128, "lr": 2e-3, "power": 0.0},
            **{"lowest": 0.03, "highest": 25.0, "ladder": (20.0, 10.0, 5.0, 2.5, 1.2, 0.6, 0.3, 0.1, 0.05)},
            **{"fitted": 10_000, "draws": 2, "drawn": 10_000, "seeds": (0, 1, 2, 3, 4), "again": 5},
        )
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "again": 2, "drawn": 1200, "draws": 1, "fitted": 1200}
        return full.changed(passes=min(16, full.passes // 8), **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 300, "fitted": 300, "draws": 1, "components": 2, "latent_dim": 4}
        return full.changed(**small, ladder=(1.0, 0.1), passes=1, seeds=(0, 1), again=2, drawn=200, resamplings=10)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    labelled = load(plan.dataset, plan.binarize)
    accept_labels(labelled)
    metrics.classifier(labelled)  # later calls find it in the cache
    common = {name: value for name, value in plan.settings.items() if name not in ("passes", "again", "seeds")}
    every = {2 * plan.passes: plan.seeds[: plan.again], plan.passes: plan.seeds}  # the longest first
    cells = [{"seed": seed, "passes": passes} | common for passes, seeds in every.items() for seed in seeds]
    found = lab.map(draw, cells, "samplers")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(
        __name__,
        plan,
        lab,
        whole.to_dict("records"),
        checks=[_doubled(plan, frame)],
        said=_said(plan, whole),
    )


def draw(
    dataset: str,
    binarize: str | None,
    images: int | None,
    ladder: list[float],
    lowest: float,
    highest: float,
    power: float,
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    fitted: int,
    draws: int,
    components: int,
    rounds: int,
    drawn: int,
    neighbours: int,
    nearest: int,
    resamplings: int,
    seed: int,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one seed, and the rows of every sampler."""
    ds, whole = load(dataset, binarize, images), load(dataset, binarize)
    extract = metrics.classifier(whole)
    beta = ladder[-1]
    make: Any = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    config = schedule(ds, passes, batch, lr, device)
    runs: Any = [
        sweep(partial(kind, **make, **more), ds, objectives=[objective], seeds=[seed], config=config, store=store)
        for kind, more, objective in (
            (models.MultiBetaVAE, {"beta_range": (lowest, highest)}, objectives.MultiBeta(power)),
            (models.VAE, {}, objectives.BetaVAE(beta)),
        )
    ]
    (many,), (alone,) = runs
    with training.seeded(seed):
        train = ds.draw(ds.train)
    view, x = many.model.at(beta), train[:fitted]
    how: Any = {"draws": draws, "seed": seed}
    mixture, one = {"n_components": components} | how, {"n_components": 1} | how
    made: dict[tuple[str, str], Any] = {
        (MANY, "prior"): samplers.Prior(view),
        (MANY, "prior, rescaled"): samplers.Prior(Rescaled(view, x)),
        (MANY, "recursive"): samplers.Recursive(many.model, ladder),
        (MANY, f"recursive, {rounds} rounds"): samplers.Recursive(many.model, ladder, rounds=rounds),
        (MANY, "recursive, x drawn"): samplers.Recursive(many.model, ladder, draw_x=True),
        (MANY, "chain, 1 component"): samplers.Chain(many.model, x, ladder, **one),
        (MANY, "chain"): samplers.Chain(many.model, x, ladder, **mixture),
        (MANY, "mixture, 1 component"): samplers.Mixture(view, x, **one),
        (MANY, BASE): samplers.Mixture(view, x, **mixture),
        (MANY, "second stage"): samplers.SecondStage(view, x, **how),
        (MANY, "aggregate"): samplers.Aggregate(view, train),
        (ALONE, "prior"): samplers.Prior(alone.model),
        (ALONE, "prior, rescaled"): samplers.Prior(Rescaled(alone.model, x)),
        (ALONE, BASE): samplers.Mixture(alone.model, x, **mixture),
        (ALONE, "aggregate"): samplers.Aggregate(alone.model, train),
    }
    real, rows = extract(ds.test), []
    place: dict[str, Any] = {"seed": seed, "split": "test"}
    for (objective, name), sampler in made.items():
        features = extract(sampler.sample(drawn, torch.Generator().manual_seed(seed)))
        estimates = compared(features, real, neighbours, nearest, resamplings, seed) | _rate(sampler, ds.test, draws, seed)
        rows += [
            results.row_of(quantity, each, objective=objective, beta=beta, sampler=name, **place)
            for quantity, each in estimates.items()
        ]
    with training.seeded(seed):
        floor = extract(whole.draw(whole.train[torch.randperm(len(whole.train))[:drawn]]))
    for quantity, each in compared(floor, real, neighbours, nearest, resamplings, seed).items():
        rows.append(results.row_of(quantity, each, objective=NONE, sampler=FLOOR, **place))
    rows.append(results.row_of("accuracy", Estimate(extract.accuracy, n=len(real)), objective=NONE, sampler=FLOOR, **place))
    return {"rows": rows}


def compared(features: Any, real: Any, neighbours: int, nearest: int, resamplings: int, seed: int) -> dict[str, Estimate]:
    """Fréchet distance to the test images, with its error over samples; precision, recall, density and coverage."""
    distance = metrics.frechet_distance(features, real, n_bootstrap=resamplings, seed=seed).estimate()
    shares = metrics.coverage(real[:nearest], features[:nearest], k=neighbours).estimates()
    return {"frechet": distance} | {name: Estimate(each.value, n=each.n) for name, each in shares.items()}


def _rate(sampler: Any, x: Any, draws: int, seed: int) -> dict[str, Estimate]:
    """Nats for a code of a test image, where the sampler is a density of z or a chain of them; else nothing."""
    if isinstance(sampler, samplers.Prior):
        value = estimators.evaluate(sampler.model, x, n_samples=1).rate
    elif isinstance(sampler, samplers.Mixture):
        value = sampler.rate(x, draws, seed)
    elif isinstance(sampler, samplers.Chain):
        value = sampler.rates(x, draws, seed).sum().item()
    else:
        return {}
    return {"rate": Estimate(value, n=len(x))}


def sides(frame: Any) -> Any:
    """How much farther each sampler is from the test images than a sampler of the model of many β, seed by seed.

    - `frame`: the Fréchet distances of a record's frame, or of two numbers of passes with a column `passes`.

    `than` says which: the mixture, and for the recursion that draws x the prior, where it begins. (Those that decode means get
    worse than the prior, or lose what they were better by, as long as models are trained.) The value is the logarithm of the
    ratio of the two distances, as they differ between seeds, and between data sets, by factors.
    """
    table = frame[frame["quantity"] == "frechet"].drop(columns=["beta", "stderr", "n"])
    keys = [name for name in ("seed", "passes") if name in table]
    many, found = table["objective"] == MANY, []
    for base, which in ((BASE, True), (PRIOR, many & (table["sampler"] == DRAWN))):
        own = many & (table["sampler"] == base)
        both = table[~own & which].merge(table.loc[own, [*keys, "value"]], on=keys, suffixes=("", "_base"))
        found.append(both.assign(value=np.log(both["value"] / both["value_base"]), than=base))
    return pd.concat(found)[["than", "objective", "sampler", *keys, "quantity", "value"]]


def claimed(apart: Any) -> Any:
    """The rows of `sides`, of one number of passes, whose side is claimed: those of models, where it is clear and by a tenth.

    How far is not claimed: with few images the recursion gets worse for as long as models are trained.
    """
    large = apart.groupby(PLACE)["value"].transform("mean").abs() > LEAST
    return convergence.clear(apart[large & (apart["objective"] != NONE)], PLACE)


def _doubled(plan: Plan, frame: Any) -> convergence.Check:
    """Twice the passes against the sides that are claimed."""
    apart = sides(frame)
    claims = claimed(apart[apart["passes"] == plan.passes])[PLACE].drop_duplicates()
    return convergence.same_side(apart[apart["seed"].isin(plan.seeds[: plan.again])].merge(claims), PLACE)


def _said(plan: Plan, rows: Any) -> str:
    distances = rows[rows["quantity"] == "frechet"]
    means = {key: Estimate.over_runs(each["value"].to_numpy()) for key, each in distances.groupby(["objective", "sampler"])}
    order = sorted((each.value, name, each) for (kind, name), each in means.items() if kind == MANY)
    table = distances[distances["objective"] == MANY].pivot(index="seed", columns="sampler", values="value")
    chain = Estimate.over_runs((table["chain"] - table[BASE]).to_numpy())
    listed = ", ".join(f"{name} {each}" for _, name, each in order)
    return (
        f"Fréchet distances to the test images at β = {plan.ladder[-1]:g}, from one decoder: {listed}; training images "
        f"{means[NONE, FLOOR].value:.3g}. The chain less the mixture is {chain:+}. A β-VAE of that β is at "
        f"{means[ALONE, 'prior']} by its prior and at {means[ALONE, BASE]} by a mixture."
    )
