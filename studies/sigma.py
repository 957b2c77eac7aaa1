"""The standard deviation σ of a Gaussian decoder and the weight β of the rate: what each of the two does.

*The plane.* With σ fixed, encoder and decoder depend on the water level s = βσ² alone. So there is a model for each level, and
pairs of models at one level with other β and σ, which must agree. Each level's likelihood is that of its best σ, which is
calibrated on the training images: σ² = MSE/n. The β that this level then stands for is n·s/MSE.

*The modes of σ.* A number that is given, one that is learned, the closed form, a σ(z) of the decoder, and the talk's loss, with
a σ for each example. Likelihoods are D + R on test images, at weight 1 whatever the β of training was.

*Images.* Means of draws from the prior are compared with test images by the Fréchet distance, where the data have labels.

*Codes.* Where the data have few grey values, a density is compared with probability masses, and with a density of pixels to
which uniform noise of a bin's width was added.
"""

import inspect
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from nbvae import analytic, checks, estimators, metrics, models, objectives, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.collapse import eigenvalues
from studies.curve import pictures
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "What does a decoder's σ do, and what does β: to the rate, the error, the likelihood and the images?"
CHAPTER = "04_sigma_and_beta"
DATASETS = ("digits", "mnist", "glyphs")
LEVELS, PAIR = "a level of fixed σ", "the same level, another β"
FIXED, LEARNED, OPTIMAL, OF_Z, EACH = "fixed", "one, learned", "one, closed form", "σ(z)", "one for each example"
MODES = {FIXED: None, LEARNED: "global", OPTIMAL: "optimal", OF_Z: "z", EACH: "optimal"}
DENSITY, SET, NOISY, MASS = "density", "density, σ set for masses", "density of noisy pixels", "mass"
CODES = (DENSITY, SET, NOISY, MASS)
STEPS = (
    *(("calibration", "first"), ("adaptation", "second")),
    *(("adaptation", "first"), ("calibration", "second")),
)
SIZED = ("calibration", "both")  # steps that are claimed with their size; of the others the side of zero is
_NOISES = 4  # how many noisy copies of the training images there are


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `levels`: water levels s of the plane, as shares of the largest eigenvalue of the data's covariance.
    - `betas`: of the models with the closed form of σ.
    - `mode_betas`: at which the other modes of σ are trained too; 1 is one of them and one of `betas`.
    - `passes`: over the training images.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `network`, `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `seeds`: as many as the errors need; on MNIST and glyphs two were added to three.
    - `draws`: the number of z for each image, to measure D; `measured`: how many images of each split at most, None for all.
    - `drawn`: the number of images from the prior; `pictured`: how many test images are kept, with what the models of the first
      seed rebuild them to, and as many draws from their priors.
    - `largest_error`: the most that the standard error of a difference of losses may be, in nats.
    """

    binarize: str | None = "none"
    levels: tuple[float, ...] = (0.01, 0.016, 0.025, 0.04, 0.07, 0.13, 0.25, 0.5)
    betas: tuple[float, ...] = (0.7, 1.0, 1.4, 2.0, 3.0, 4.5, 6.5)
    mode_betas: tuple[float, ...] = (1.0, 3.0)
    passes: int = 600
    against: float = 2.0
    again: int = 5
    network: str = "mlp"
    latent_dim: int = 8
    hidden: tuple[int, ...] = (64,)
    batch: int = 100
    lr: float = 6e-3
    draws: int = 4
    measured: int | None = None
    drawn: int = 2000
    pictured: int = 6
    largest_error: float = 0.5
    seeds: tuple[int, ...] = tuple(range(8))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("levels", 3), ("betas", 3), ("mode_betas", 1)):
            each = getattr(self, name)
            if len(each) < least or list(each) != sorted(set(each)) or each[0] <= 0:
                raise ValueError(
                    f"{name} must be at least {least} numbers > 0, from the smallest to the largest; got {checks.short(each)}"
                )
        if self.levels[-1] >= 1:
            raise ValueError("levels must be below 1, where the code is empty")
        if 1.0 not in self.mode_betas or not set(self.mode_betas) <= set(self.betas):
            raise ValueError("mode_betas must have 1, where gains are measured, and be among betas")
        convergence.accept_against(self.passes, self.against)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{
                "images": 10_000,
                "passes": 80,
                "against": 0.5,
                "hidden": (256,),
                "latent_dim": 16,
                "lr": 2e-3,
                "draws": 1,
                "measured": 4000,
            },
            **{"levels": (0.001, 0.002, 0.004, 0.008, 0.03, 0.15), "betas": (0.5, 1.0, 2.0, 5.0, 10.0, 25.0)},
            **{"mode_betas": (1.0, 5.0), "drawn": 10_000, "largest_error": 1.0, "seeds": (0, 1, 2, 3, 4), "again": 3},
        )
    if dataset not in DATASETS:  # for any: fewer latents than dimensions, or a learned σ has no optimum
        n = full.data().train[0].numel()
        full = full.changed(latent_dim=max(1, min(8, (n - 1) // 2)), lr=full.lr * min(1.0, 256 / n))
    few = {"seeds": (0, 1), "again": 2, "draws": 1, "against": 2.0}
    short = {"levels": (0.01, 0.03, 0.1, 0.4), "betas": (0.35, 1.0, 4.0), "mode_betas": (1.0,)}
    if budget == "quick":
        small = {"images": 1200, "passes": 12, "measured": 1000, "drawn": 1000}
        return full.changed(**few, **short, **small).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "latent_dim": 4, "images": 300, "passes": 1, "measured": 200, "drawn": 200}
        return full.changed(**few, **short | {"levels": (0.03, 0.1, 0.4)}, **small)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    ds = plan.data()
    if len(ds.shape) == 0 or ds.train[0].numel() < 2:
        raise ValueError("σ and β need data with two dimensions or more")
    if has_features(ds):
        metrics.classifier(load(plan.dataset, plan.binarize))  # later calls find it in the cache
    apart = ("passes", "against", "again", "seeds", "largest_error")
    common = {name: value for name, value in plan.settings.items() if name not in apart}
    parts = [LEVELS, OPTIMAL, FIXED, LEARNED, OF_Z, EACH, PAIR, *(CODES[2:] if grey_levels(ds.train) else ())]
    again, others = plan.seeds[: plan.again], plan.seeds[plan.again :]
    every = [(round(plan.against * plan.passes), again), (plan.passes, again), (plan.passes, others)]
    every = sorted((each for each in every if each[1]), reverse=True)  # the longest first
    cells = [common | {"part": part, "passes": passes, "seeds": seeds} for passes, seeds in every for part in parts]
    found = lab.map(train, cells, "models")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    kept = found[every.index((plan.passes, again)) * len(parts) + parts.index(OPTIMAL)]
    first: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(
        __name__,
        plan,
        lab,
        first.to_dict("records"),
        checks=_checks(plan, frame, first),
        said=_said(first, ds.train[0].numel()),
        arrays={name: kept[name] for name in ("images", "rebuilt", "drawn")},
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    levels: list[float],
    betas: list[float],
    mode_betas: list[float],
    network: str,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    measured: int | None,
    drawn: int,
    pictured: int,
    part: str,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one part of the study, for each of its settings and seeds: rows of the frame; of `OPTIMAL` pictures too."""
    ds = load(dataset, binarize, images)
    grey, spectrum = grey_levels(ds.train), eigenvalues(ds.train)
    kind: dict[str, Any] = {"likelihood": "gaussian"}
    objective, variances = objectives.BetaVAE, [float(spectrum.mean())]
    if part == LEVELS:
        betas, variances = [1.0], [share * spectrum[0] for share in levels]
    elif part == PAIR:
        betas = [0.1, 10.0]
        variances = [levels[len(levels) // 2] * spectrum[0] / beta for beta in betas]
    elif part in (NOISY, MASS):
        betas = [1.0]
        kind |= (
            {"sigma": "global"} if part == NOISY else {"likelihood": "discretized_gaussian", "sigma": "global", "levels": grey}
        )
    else:
        betas = betas if part == OPTIMAL else mode_betas
        kind |= {} if part == FIXED else {"sigma": MODES[part]}
        objective = objectives.LogMSE if part == EACH else objectives.BetaVAE
    shown, count = ds, passes
    if part == NOISY:
        shown, count = noisy(ds, grey), math.ceil(passes / _NOISES)
    make = partial(models.VAE, ds.shape, latent_dim, network=network, hidden=hidden, **kind)
    config = training.TrainConfig(count, batch, lr, "one_cycle", device=device)
    how: Any = {"objective": objective, "seeds": seeds, "config": config, "store": store}
    if part == PAIR:  # each β has a σ of its own, in the order in which a sweep makes its models
        deviations = iter([math.sqrt(variance) for variance in variances for _ in seeds])
        runs = sweep(lambda: make(sigma=next(deviations)), shown, betas, **how)
    elif part in (LEVELS, FIXED):
        runs = sweep(make, shown, betas, sigmas=[variance**0.5 for variance in variances], **how)
    else:
        runs = sweep(make, shown, betas, **how)
    extract = metrics.classifier(load(dataset, binarize)) if part in (LEVELS, OPTIMAL) and has_features(ds) else None
    rows = []
    for each in runs:
        place: dict[str, Any] = {"objective": part, "beta": each.objective.beta, "seed": each.config.seed}
        if part in (LEVELS, PAIR, FIXED):
            place["level"] = each.objective.beta * each.model.observation.scale.item() ** 2
        if part in (NOISY, MASS):
            values = {"test": {"bits": bits(each.model, shown if part == NOISY else ds, grey, draws, part == NOISY)}}
        else:
            values = {split: _on(each, getattr(ds, split)[:measured], draws) for split in ("train", "test")}
            if extract is not None:
                images_drawn = samplers.Prior(each.model).sample(drawn, torch.Generator().manual_seed(each.config.seed))
                values["test"]["frechet"] = metrics.frechet_distance(extract(images_drawn), extract(ds.test)).value
        rows += _rows(place, values)
        if part == OPTIMAL and each.objective.beta == 1 and grey:
            for name in CODES[:2]:
                if name == SET:
                    set_for_masses(each.model, ds.train[:measured], grey)
                value = bits(models.Discretized(each.model, grey), ds, grey, draws)
                rows += _rows(place | {"objective": name}, {"test": {"bits": value}})
    shown_runs = [each.model for each in runs if part == OPTIMAL and each.config.seed == seeds[0]]
    return {"rows": rows} | (pictures(shown_runs, ds.test[:pictured]) if shown_runs else {})


def _rows(place: dict[str, Any], values: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        place | {"split": split, "quantity": name, "value": value, "stderr": None, "n": None}
        for split, each in values.items()
        for name, value in each.items()
    ]


@torch.no_grad()
def _on(run: Any, x: Any, draws: int) -> dict[str, float]:
    """What one model is on some images: rate, MSE and D, latents in use, and of the talk's loss its own score too."""
    point = estimators.evaluate(run.model, x, run.objective.beta, draws)
    found = {"rate": point.rate, "mse": point.mse, "distortion": point.distortion}
    found["active"] = float(estimators.active_units(run.model, x).count)
    if isinstance(run.objective, objectives.LogMSE):
        with training.seeded(0, run.model.prior().mean.device):
            found["score"] = run.objective(run.model, x).terms.distortion.double().mean().item()
    return found


def has_features(ds: Any) -> bool:
    """Whether images can be compared in the features of a classifier of the data's own labels: more images than features."""
    if ds.train_labels is None or ds.test_labels is None or len(ds.train_labels.unique()) < 2:
        return False
    return len(ds.test) > inspect.signature(metrics.classifier).parameters["hidden"].default[-1]


def grey_levels(x: torch.Tensor) -> int | None:
    """The number of grey values 0, 1/(levels − 1), …, 1 that all of x is made of, 17 or 256; None for any other data.

    None too for more than 1,024 dimensions, of which masses take long.

    >>> grey_levels(torch.tensor([0.0, 3 / 16, 1.0])), grey_levels(torch.tensor([0.1, 1.0])), grey_levels(torch.ones(3))
    (17, None, None)
    """
    if x[0].numel() > 1024 or x.unique().numel() < 3 or x.min() < 0 or x.max() > 1:
        return None
    return next((n for n in (17, 256) if ((x * (n - 1)) - (x * (n - 1)).round()).abs().max() < 1e-3), None)


def noisy(ds: Any, levels: int | None) -> Any:
    """The data set with uniform noise of the width of a bin added to its grey values, several copies of each training image."""
    assert levels is not None
    generator = torch.Generator().manual_seed(0)
    splits = {"train": ds.train.repeat(_NOISES, *[1] * len(ds.shape)), "validation": ds.validation, "test": ds.test}
    for name, x in splits.items():
        splits[name] = (x * (levels - 1) + torch.rand(x.shape, generator=generator)) / levels
    labels = dict.fromkeys(("train_labels", "validation_labels", "test_labels", "factors"))
    return replace(ds, name=f"{ds.name}, noisy", **splits, **labels)


def bits(model: Any, ds: Any, levels: int | None, draws: int, is_density: bool = False) -> float:
    """D + R of test images in bits for each dimension; of a density of noisy pixels, with the width of its bins."""
    point = estimators.evaluate(model, ds.test, n_samples=draws)
    n = ds.test[0].numel()
    return (point.distortion + point.rate) / (n * math.log(2)) + (math.log2(levels or 1) if is_density else 0.0)


def set_for_masses(model: Any, x: torch.Tensor, levels: int) -> None:
    """Set the one σ of a model to the best of a few for masses of x: the bins have a width."""
    own, x = model.observation.scale.item(), x[: max(1, 1_000_000 // x[0].numel())]
    tried = []
    for sigma in own * np.linspace(1, 2.5, 13):
        model.observation.set_variance(torch.tensor(sigma**2))
        point = estimators.evaluate(models.Discretized(model, levels), x, n_samples=1)
        tried.append((point.distortion, sigma))
    model.observation.set_variance(torch.tensor(min(tried)[1] ** 2))


# What is read from the rows, by the checks and by the page.


def wide(frame: Any, part: str) -> Any:
    """The models of one part, a row for each: quantities as `train_mse`, `test_rate`…, with beta, level and seed."""
    some = frame[frame["objective"] == part]
    keys = [name for name in ("beta", "level", "seed") if name in some and some[name].notna().all()]
    table = some.pivot_table(index=keys, columns=["split", "quantity"], values="value")
    table.columns = [f"{split}_{quantity}" for split, quantity in table.columns]
    return table.reset_index()


def scored(rate: Any, mse: Any, variance: Any, n: int) -> Any:
    """D + R of a Gaussian decoder with one variance σ² for all n dimensions, nats.

    >>> round(float(scored(1.0, 2.0, 1.0, 2)), 4)  # log 2π + 1 + 1
    3.8379
    """
    return rate + mse / (2 * variance) + n / 2 * np.log(2 * np.pi * variance)


def calibrated(frame: Any, part: str, n: int) -> Any:
    """The models of one part at σ² = MSE/n of the training images: their β, and D + R on both splits, `train` and `test`."""
    table = wide(frame, part)
    variance = table["train_mse"] / n
    beta = table["level"] / variance if "level" in table else table["beta"]
    both = {split: scored(table[f"{split}_rate"], table[f"{split}_mse"], variance, n) for split in ("train", "test")}
    return table.assign(variance=variance, calibrated_beta=beta, **both)


def best_beta(betas: Any, values: Any) -> float:
    """Where a curve over log β is least: the vertex of a parabola through its least point and the two beside it.

    >>> betas = np.array([0.2, 0.5, 2.0, 4.0])
    >>> round(best_beta(betas, np.log(betas / 1.5) ** 2), 6)
    1.5
    """
    order = np.argsort(betas)
    place, value = np.log(np.asarray(betas)[order]), np.asarray(values)[order]
    near = np.clip(value.argmin(), 1, len(value) - 2) + np.arange(-1, 2)
    square, linear, _ = np.polyfit(place[near], value[near], 2)
    vertex = -linear / (2 * square) if square > 0 else place[value.argmin()]
    return float(np.exp(np.clip(vertex, place[0], place[-1])))  # at an end of the grid where there is none inside


def best_betas(frame: Any, n: int) -> Any:
    """The best β in likelihood on both splits, and in the Fréchet distance where there is one, for each seed.

    A row for each part, seed and quantity; the value is log β, of levels that of their calibrated σ.
    """
    rows = []
    for part in (LEVELS, OPTIMAL):
        for seed, each in calibrated(frame, part, n).groupby("seed"):
            columns = {"training": each["train"], "test": each["test"]}
            if "test_frechet" in each:
                columns["Fréchet distance"] = each["test_frechet"]
            rows += [
                {
                    "objective": part,
                    "quantity": name,
                    "seed": seed,
                    "value": math.log(best_beta(each["calibrated_beta"], values)),
                }
                for name, values in columns.items()
            ]
    return pd.DataFrame(rows)


def waterfall(frame: Any, n: int) -> Any:
    """By how much D + R on test images falls from a σ that is given to one that is learned, at β = 1, in both orders.

    *Calibration* is the judge's σ: from the given one to that of the errors. *Adaptation* is the networks': from
    those that were trained with the given σ to those that were trained with the best. A row for each step and seed, and the
    total.
    """
    one = {part: calibrated(frame, part, n).query("beta == 1").set_index("seed") for part in (FIXED, OPTIMAL)}
    given = one[FIXED]["level"]
    judged = {
        (part, name): scored(table["test_rate"], table["test_mse"], given if name == "given" else table["variance"], n)
        for part, table in one.items()
        for name in ("given", "best")
    }
    start, end = judged[FIXED, "given"], judged[OPTIMAL, "best"]
    through = {"calibration": judged[FIXED, "best"], "adaptation": judged[OPTIMAL, "given"]}
    steps = {(kind, place): start - through[kind] for kind, place in STEPS if place == "first"}
    steps |= {(kind, place): through[_other(kind)] - end for kind, place in STEPS if place == "second"}
    steps["both", "in all"] = start - end
    return pd.DataFrame(
        [
            {"objective": kind, "quantity": place, "seed": seed, "value": value}
            for (kind, place), values in steps.items()
            for seed, value in values.items()
        ]
    )


def _other(kind: str) -> str:
    return "adaptation" if kind == "calibration" else "calibration"


def gains(frame: Any) -> Any:
    """By how much each mode's D + R on test images, at its own σ, is below that of the closed form, for each β and seed."""
    total = {part: wide(frame, part).set_index(["beta", "seed"]) for part in MODES}
    values = {part: table["test_distortion"] + table["test_rate"] for part, table in total.items()}
    rows = [
        {
            "objective": part,
            "quantity": f"β = {beta:g}",
            "beta": beta,
            "seed": seed,
            "value": values[OPTIMAL][beta, seed] - value,
        }
        for part in MODES
        if part != OPTIMAL
        for (beta, seed), value in values[part].items()
    ]
    return pd.DataFrame(rows)


def summary(frame: Any, n: int) -> dict[str, Estimate]:
    """What one data set says of σ at β = 1, on test images: nats, and of codes bits per dimension."""
    steps = _over(waterfall(frame, n), ["objective", "quantity"])
    more = _over(gains(frame).query("beta == 1"), ["objective"])
    each = wide(frame, EACH).query("beta == 1")
    found = {
        "calibration first": steps["calibration, first"],
        "then adaptation": steps["adaptation, second"],
        "adaptation first": steps["adaptation, first"],
        "then calibration": steps["calibration, second"],
        "σ(z), over one σ": more[OF_Z],
        "the talk's loss, over one σ": more[EACH],
        "the illusion of its score": Estimate.over_runs((each["test_distortion"] - each["test_score"]).to_numpy()),
    }
    codes = frame[frame["quantity"] == "bits"]
    bits = {kind: own.set_index("seed")["value"].sort_index() for kind, own in codes.groupby("objective")}
    for kind in (SET, NOISY):
        if {kind, MASS} <= bits.keys():
            found[f"bits: {kind}, over a mass"] = Estimate.over_runs((bits[kind] - bits[MASS]).to_numpy())
    return found


def identity(frame: Any, n: int) -> Any:
    """Rate and D* of the models of `PAIR` less those of the same level at β = 1, on training images, seed by seed."""
    pair, levels = wide(frame, PAIR), wide(frame, LEVELS)
    level = levels["level"].iloc[(levels["level"] - pair["level"].mean()).abs().argmin()]
    own = levels[np.isclose(levels["level"], level, rtol=1e-3)].set_index("seed")
    rows = []
    for _, each in pair.iterrows():
        other = own.loc[each["seed"]]
        stars = [analytic.calibrated_distortion(one["train_mse"], n) for one in (each, other)]
        for name, value in (("rate", each["train_rate"] - other["train_rate"]), ("D*", stars[0] - stars[1])):
            rows.append({"beta": each["beta"], "seed": int(each["seed"]), "quantity": name, "value": value})
    return pd.DataFrame(rows)


def claims(frame: Any, n: int) -> Any:
    """What is claimed in nats: the waterfall's steps, and what modes gain over the closed form."""
    keys = ["objective", "quantity", "seed", "value"]
    return pd.concat([waterfall(frame, n), gains(frame)[keys]])[keys]


def _checks(plan: Plan, frame: Any, first: Any) -> list[convergence.Check]:
    n, again = plan.data().train[0].numel(), plan.seeds[: plan.again]
    both = pd.concat([claims(each, n).assign(passes=passes) for passes, each in frame.groupby("passes")])
    every = _over(claims(first, n), ["objective", "quantity"])
    # What is told in words; of the learned σ less the closed form only the table tells, with its errors.
    told = {name: each for name, each in every.items() if not name.startswith(f"{LEARNED}, ")}
    # No error need be smaller than a quarter of the smallest effect that is told.
    fine = max(plan.largest_error, min(abs(each.value) for each in told.values()) / 4)
    found = [_crossed(first, part, n, fine) for part in (LEVELS, OPTIMAL)]
    large = convergence.claimed(both, plan.passes, again, 4 * plan.largest_error)
    clear = convergence.clear(claims(first, n), ["objective", "quantity"])[["objective", "quantity"]].drop_duplicates()
    both = large.merge(clear)
    sizes = both[both["objective"].isin(SIZED)]
    found.append(convergence.twice(sizes.assign(allowed=sizes["claim"] / 4), ["objective"]))
    left = [" ".join(key) for key in _keys(large) if key not in _keys(both)]
    check = convergence.same_side(both, ["objective"])
    found.append(replace(check, found=check.found + (f"; no side is claimed of {', '.join(left)}" if left else "")))
    betas: Any = pd.concat([best_betas(each, n).assign(passes=passes) for passes, each in frame.groupby("passes")])
    betas = betas[betas["seed"].isin(again)]
    check = convergence.twice(betas[betas["quantity"] == "training"].assign(allowed=0.15), ["objective"])
    found.append(replace(check, name=f"{check.name}: the logarithm of the best β, training images"))
    # With the closed form the best β on test images has not settled on all data sets.
    check = convergence.same_side(betas[(betas["quantity"] == "test") & (betas["objective"] == LEVELS)], ["objective"])
    said = f"{check.found}; no side is claimed of {OPTIMAL}"
    found.append(replace(check, name=f"{check.name}: the logarithm of the best β, test images", found=said))
    same = _over(identity(first, n), ["quantity", "beta"])
    name, worst = max(same.items(), key=lambda each: abs(each[1].value))
    agree = all(abs(each.value) <= max(plan.largest_error, 2 * each.stderr) for each in same.values())
    found.append(convergence.Check("models of one level agree", agree, f"the largest difference is of {name}: {worst:+} nats"))
    check = convergence.errors(told, max(2 * plan.largest_error, fine))
    beside = ", ".join(f"{name}: {each:+}" for name, each in every.items() if name not in told)
    return [*found, replace(check, found=f"{check.found}; not held to it are {beside}")]


def _keys(frame: Any) -> list[tuple[str, str]]:
    return [*dict.fromkeys(zip(frame["objective"], frame["quantity"], strict=True))]


def _crossed(first: Any, part: str, n: int, largest_error: float) -> convergence.Check:
    """The cross table of levels, by R + MSE/2s, or of βs with the closed form of σ, by R + D*/β: in nats of rate."""
    table, name = wide(first, part), "level" if part == LEVELS else "beta"
    rows = [
        {"objective": f"{own:.3g}", "under": f"{under:.3g}", "seed": seed}
        | {"value": rate + (mse / (2 * under) if part == LEVELS else analytic.calibrated_distortion(mse, n) / under)}
        for own, seed, rate, mse in table[[name, "seed", "train_rate", "train_mse"]].itertuples(index=False)
        for under in table[name].unique()
    ]
    _, check = convergence.cross_table(pd.DataFrame(rows), largest_error)
    return replace(check, name=f"{check.name}: {part}", found=f"{check.found}; {largest_error:.2g} allowed")


def _over(frame: Any, by: list[str]) -> dict[str, Estimate]:
    """Means over seeds, by the names of what they are of."""
    return {
        ", ".join(map(str, key)): Estimate.over_runs(each["value"].to_numpy()) for key, each in frame.groupby(by, sort=False)
    }


def _said(first: Any, n: int) -> str:
    steps, best = _over(waterfall(first, n), ["objective", "quantity"]), best_betas(first, n)
    told = _over(best[best["objective"] == LEVELS].assign(value=np.exp(best["value"])), ["quantity"])
    more = _over(gains(first).query("beta == 1"), ["objective"])
    return (
        f"At β = 1 a learned σ is worth {steps['both, in all']} nats on test images: {steps['calibration, first']} by "
        f"calibration and then {steps['adaptation, second']} by adaptation, or {steps['adaptation, first']} by adaptation and "
        f"then {steps['calibration, second']} by calibration. σ(z) is worth {more[OF_Z]} nats more, a σ for each example in "
        f"training {more[EACH]}. Best along the calibrated line is β = "
        + ", ".join(f"{value} ({name})" for name, value in told.items())
        + "."
    )
