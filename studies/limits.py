"""How far a VAE is from the best code for its data: R(D) bounded from both sides, and what the distance is made of.

The data are the first principal components of images, where a lower bound can be had, and whole images, where there are upper
bounds only. Distortion is squared error, in the mean variance of a component as its unit. At a slope −β every code is placed by

    D/β + R        nats, the least of which is that of R(D) at this slope,

on test images. A VAE that minimises D + βR is above the best codebook by what its parts lack, one after another: its encoder
(the posterior that one network gives for all images against the best Gaussian for each, *amortisation*; this against the true
posterior, *family*), its *prior* (N(0, I) against a mixture of Gaussians that is fitted to the codes, both with the best
encoder) and its *decoder* (what a codebook does better than that). The best encoder is that of importance sampling, from below:
family is at least what is given, and prior and decoder together at most. Each part ends where the next one begins; that they
add up to what was measured in one piece, from other draws, is a check of the bookkeeping. That no part of the encoder is below
zero, and that the prior's is near what the mixture saves of the rate with the VAE's own encoder, are checks of the parts.

A lower bound from k draws is below log k nats. It is measured on all images that nothing was fitted to.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from nbvae import analytic, checks, data, estimators, limits, models, objectives, results, training
from nbvae.results import Estimate
from studies import convergence, replacements
from studies.failures import Grown
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "How far is a VAE from the best code for its data, and is it the encoder, the prior or the decoder?"
CHAPTER = "08_limits"
DATASETS = ("digits", "mnist", "glyphs")
VAE, MANY, CODEBOOK, LOWER, GAUSSIAN = "VAE", "one model", "codebook", "lower bound", "Gaussian"
PARTS = tuple(replacements.STAGES)
GAP = "gap"
IMAGES = "images"
_SHORTER = (2, 1)  # parts of the passes that are tried too
_START = 0.02  # the weight of the rate with which a VAE's training begins


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `dims`: how many principal components of the training images, each a source of its own; `whole`: whether images as they
      are, with their mean taken off, are one more.
    - `betas`: the slopes, in mean variances of the components per nat.
    - `passes`: over the training images at most, or a half, whichever is best on validation images; and, to
      compare with, up to twice as many.
    - `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule; `latent_dim`: for whole images,
      else there are as many latents as components.
    - `low`, `high`: the range of β of one model.
    - `points`: the numbers of codes of codebooks, which validation images choose from; `turns`: passes of a codebook.
    - `starts`, `climbs`: of the search of a lower bound. Turns, starts and climbs are doubled too.
    - `measured`: how many test images codes are measured on at most.
    - `draws`: of z for each of them; `samples`: of importance sampling; `steps`: towards the best Gaussian of each.
    - `components`: of the mixture that is fitted to codes.
    - `largest_error`: the most that the standard error of what is claimed may be, in nats, and the most that it may be off,
      unless that is at most a quarter of it.
    - `unclaimed`: what is measured and not claimed, by how its name begins, with quantity, kind, source and β, as "decoder VAE
      images 0.2".
    """

    dims: tuple[int, ...] = (8, 16)
    whole: bool = True
    betas: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)
    passes: int = 480
    hidden: tuple[int, ...] = (128, 128)
    latent_dim: int = 16
    batch: int = 100
    lr: float = 1e-2
    low: float = 0.1
    high: float = 3.0
    points: tuple[int, ...] = (10, 50, 200, 500)
    turns: int = 40
    starts: int = 500
    climbs: int = 30
    measured: int = 400
    draws: int = 50
    samples: int = 1000
    steps: int = 200
    components: int = 10
    largest_error: float = 0.1
    unclaimed: tuple[str, ...] = ()
    binarize: str | None = "none"
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dims or len(set(self.dims)) < len(self.dims) or min(self.dims) < 1:
            raise ValueError(f"dims must be different whole numbers >= 1, at least one; got {checks.short(self.dims)}")
        if not self.betas or list(self.betas) != sorted(set(self.betas)) or self.betas[0] <= 0:
            raise ValueError(f"betas must be numbers > 0, from the smallest to the largest; got {checks.short(self.betas)}")
        if not 0 < self.low <= self.betas[0] or not self.betas[-1] <= self.high or self.low == self.high:
            raise ValueError("low and high must have all of betas between them")
        for name in ("latent_dim", "batch", "turns", "starts", "climbs", "draws", "samples", "steps", "components"):
            checks.whole(name, getattr(self, name))
        checks.whole("passes", self.passes)
        checks.whole("measured", self.measured, minimum=2)
        if not self.points or min(self.points) < 1:
            raise ValueError(f"points must be whole numbers >= 1, at least one; got {checks.short(self.points)}")
        if len(self.seeds) < 2:
            raise ValueError("errors need at least two seeds")
        convergence.accept_unclaimed(self.unclaimed, ["above the codebook", "prior", "decoder", "amortisation", "family"])


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        larger = {"images": 10_000, "hidden": (200, 200), "passes": 32, "batch": 128, "lr": 4e-3, "points": (50, 200)}
        fewer = {"turns": 12, "measured": 500, "components": 20, "draws": 20, "samples": 500, "steps": 100}
        full = full.changed(**larger, **fewer, largest_error=0.2)
    if budget == "quick":
        few = {"images": 1000, "dims": (8,), "whole": False, "betas": (0.5, 2.0), "seeds": (0, 1), "measured": 200}
        fast = {"passes": 20, "points": (10, 50), "turns": 10, "starts": 200, "climbs": 10, "samples": 100, "steps": 50}
        return full.changed(**few, **fast, draws=20).stretched("passes")
    if budget == "smoke":
        few = {"images": 200, "dims": (2,), "betas": (1.0,), "seeds": (0, 1), "measured": 50, "hidden": (8,), "latent_dim": 2}
        fast = {"passes": 2, "points": (5,), "turns": 2, "starts": 20, "climbs": 2, "samples": 5, "steps": 3, "components": 2}
        return full.changed(**few, **fast, draws=2)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    left_out = ("dims", "whole", "seeds", "largest_error", "unclaimed")
    common = {name: value for name, value in plan.settings.items() if name not in left_out}
    cells = [  # the longest first
        {"kind": kind, "dim": dim, "of": max(plan.dims), "seed": seed} | common
        for kind in (VAE, MANY, CODEBOOK, LOWER)
        for dim in (*[0] * plan.whole, *sorted(plan.dims, reverse=True))
        for seed in plan.seeds
        if kind != LOWER or dim
    ]
    frame: Any = pd.DataFrame([row for found in lab.map(measure, cells, "limits") for row in found["rows"]])
    frame = pd.concat([frame, _gaps(frame)], ignore_index=True)
    first: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(__name__, plan, lab, first.to_dict("records"), checks=_checks(plan, frame), said=_said(plan, first))


# The sources.


class Source(NamedTuple):
    """Examples of a source, and draws of it that nothing was fitted to, (k, n)."""

    ds: data.Dataset
    draws: Tensor


def name_of(dim: int) -> str:
    """What a frame calls a source: so many components, or 0 for whole images."""
    return f"{dim} components" if dim else IMAGES


def components(ds: data.Dataset) -> int:
    """How many principal components the training examples of a data set may have; `ValueError` if there is no variance."""
    if not (ds.train != ds.train[:1]).any():
        raise ValueError(f"dataset {ds.name} has training examples that are all the same: there is nothing to code")
    return min(ds.train[0].numel(), len(ds.train) - 1)


def source(dataset: str, binarize: str | None, images: int | None, dim: int, of: int) -> Source:
    """The first `dim` principal components of images, or for 0 all pixels, scaled as the first `of` components need it.

    Mean, axes and scale are those of the training images that are used: `of` components have the mean variance 1 there.
    """
    ds, every = load(dataset, binarize, images), load(dataset, binarize)
    x, most = ds.train.flatten(1).double(), components(ds)
    if max(dim, of) > most:
        raise ValueError(f"dims must be at most {most} for {dataset}, got {max(dim, of)}")
    mean = x.mean(0)
    _, spread, axes = torch.linalg.svd(x - mean, full_matrices=False)
    scale = (spread[:of].square().mean() / len(x)).rsqrt()

    def reduced(part: Tensor) -> Tensor:
        apart = (part.flatten(1).double() - mean) * scale
        return (apart @ axes[:dim].T if dim else apart).float()

    train, validation, test = (reduced(part) for part in (ds.train, ds.validation, ds.test))
    others = torch.cat([reduced(every.train[len(ds.train) :]), validation, test])
    return Source(data.Dataset(f"{dataset}, {name_of(dim)}", train, validation, test), others)


# What is measured: a call for each kind of code, source and seed.


def measure(
    kind: str, dataset: str, binarize: str | None, images: int | None, dim: int, of: int, seed: int, **settings: Any
) -> dict[str, Any]:
    """One kind of code on one source: rows for the plan's effort and for twice as much."""
    found = source(dataset, binarize, images, dim, of)
    how = {VAE: _vaes, MANY: _one_model, CODEBOOK: _codebooks, LOWER: _lower_bounds}[kind]
    passes = settings["passes"]
    rows = [row | {"passes": times * passes} for times in (1, 2) for row in how(found, times, dim, seed, **settings)]
    place = {"source": name_of(dim), "seed": seed, "split": "test"}
    return {"rows": [place | {"objective": kind} | row for row in rows]}


def _codebooks(
    found: Source, times: int, dim: int, seed: int, betas: list[float], measured: int, device: str, **plan: Any
) -> list[dict[str, Any]]:
    place, ds = training.device(device), found.ds
    rows = []
    values = _eigenvalues(ds.test[:measured])
    for beta in betas:
        bound = limits.upper_bound(
            ds.train.to(place),
            ds.test[:measured],
            beta,
            [count for count in plan["points"] if count <= len(ds.train)],
            passes=times * plan["turns"],
            validation=ds.validation[:measured],
            seed=seed,
        )
        rows += _rows(beta, bound.nats, bound.estimate("rate"), bound.estimate("distortion"))
        rate, mse = analytic.gaussian_rd(values, beta / 2)
        gaussian = _rows(beta, *(Estimate(value) for value in (rate + mse / beta, rate, mse)))
        rows += [row | {"objective": GAUSSIAN} for row in gaussian]
    return rows


def _eigenvalues(x: Tensor) -> Any:
    """Of the second moments of x about its mean."""
    values = torch.linalg.svdvals((x - x.mean(0)).double()).square() / len(x)
    return torch.nn.functional.pad(values, (0, x.shape[1] - len(values))).numpy()


def _lower_bounds(
    found: Source, times: int, dim: int, seed: int, betas: list[float], device: str, **plan: Any
) -> list[dict[str, Any]]:
    place, rows = training.device(device), []
    for beta in betas:
        bound = limits.lower_bound(
            found.ds.train.to(place),
            found.draws,
            beta,
            [count for count in (1, *plan["points"][:2]) if 2 * count <= len(found.ds.train)],
            starts=times * plan["starts"],
            climbs=times * plan["climbs"],
            passes=plan["turns"],
            seed=seed,
        )
        own = Estimate(bound.distortion, n=len(found.draws))
        rows += _rows(beta, bound.nats, Estimate(bound.rate, bound.rate_stderr, len(found.draws)), own)
    return rows


def _vaes(found: Source, times: int, dim: int, seed: int, betas: list[float], **plan: Any) -> list[dict[str, Any]]:
    """A β-VAE for each β, the best of several numbers of passes, and the parts of what it is above a codebook by.

    β grows to its value over the first half of a training.
    """
    ds, rows = found.ds, []

    def make() -> models.VAE:
        return models.VAE(ds.shape, dim or plan["latent_dim"], "mlp", "gaussian", sigma=math.sqrt(0.5), hidden=plan["hidden"])

    best: dict[float, tuple[float, Any]] = {}
    for config in _configs(times, **plan):
        steps = config.epochs * -(-len(ds.train) // config.batch_size)
        # From the first step on, a large β empties the codes of whole images, and most trainings never recover.
        grown = [Grown(beta, min(_START, beta), max(1, steps // 2)) for beta in betas]
        runs = sweep(make, ds, objectives=grown, seeds=[seed], config=config, store=plan["store"])
        for beta, run in zip(betas, runs, strict=True):
            loss = estimators.evaluate(run.model, ds.validation, beta, plan["draws"], seed).loss()
            best[beta] = min(best.get(beta, (math.inf, None)), (loss, run.model), key=lambda each: each[0])
    x = ds.test[: plan["measured"]]
    for beta, (_, model) in best.items():
        rows += _point(model, x, beta, plan["draws"], seed)
        rows += [
            results.row_of(name, each, beta=beta)
            for name, each in replacements.measured(model, ds.train, x, beta, times, seed, **plan).items()
        ]
    return rows


def _one_model(found: Source, times: int, dim: int, seed: int, betas: list[float], **plan: Any) -> list[dict[str, Any]]:
    """One model of many β, trained for the mean of D/β + R, with the number of passes that is best for that of the plan's."""
    ds = found.ds

    def make() -> models.MultiBetaVAE:
        shape = {"shape": ds.shape, "latent_dim": dim or plan["latent_dim"], "network": "mlp", "hidden": plan["hidden"]}
        gaussian = {"likelihood": "gaussian", "sigma": math.sqrt(0.5)}
        return models.MultiBetaVAE(**shape, **gaussian, beta_range=(plan["low"], plan["high"]))

    best: tuple[float, Any] = math.inf, None
    for config in _configs(times, **plan):
        [run] = sweep(make, ds, objectives=[objectives.MultiBeta(power=1.0)], seeds=[seed], config=config, store=plan["store"])
        model: Any = run.model
        each = [estimators.evaluate(model.at(beta), ds.validation, beta, plan["draws"], seed) for beta in betas]
        mean = sum(point.loss() / point.beta for point in each) / len(betas)
        best = min(best, (mean, model), key=lambda each: each[0])
    x = ds.test[: plan["measured"]]
    return [row for beta in betas for row in _point(best[1].at(beta), x, beta, plan["draws"], seed)]


def _configs(times: int, passes: int, batch: int, lr: float, device: str, **rest: Any) -> list[training.TrainConfig]:
    """What is tried: half and all of the passes, and with twice the effort twice as many too."""
    counts = {max(1, passes // part) for part in _SHORTER} | {times * passes}
    return [training.TrainConfig(count, batch, lr, "one_cycle", device=device) for count in sorted(counts)]


def _point(model: Any, x: Tensor, beta: float, draws: int, seed: int) -> list[dict[str, Any]]:
    """The rows of a VAE whose D is the squared error and a constant."""
    point = estimators.evaluate(model, x, beta, draws, seed)
    nats = Estimate(point.rate + point.mse / beta, point.loss_stderr / beta, len(x))
    return _rows(beta, nats, point.estimate("rate"), point.estimate("mse"))


def _rows(beta: float, nats: Estimate, rate: Estimate, distortion: Estimate) -> list[dict[str, Any]]:
    each = {"nats": nats, "rate": rate, "distortion": distortion}
    return [results.row_of(name, value, beta=beta) for name, value in each.items()]


def _gaps(frame: Any) -> Any:
    """Rows of what each VAE is above the codebook of its seed by, as it was measured in one piece, and of the parts."""
    keys = ["source", "beta", "seed", "split", "passes"]
    vaes = frame[frame["objective"] == VAE]
    wide: Any = vaes.pivot_table(index=keys, columns="quantity", values="value")
    books = frame[(frame["objective"] == CODEBOOK) & (frame["quantity"] == "nats")].set_index(keys)["value"]
    wide["nats of the codebook"] = books
    made = {GAP: wide["nats"] - wide["nats of the codebook"]}
    made |= {name: wide[before] - wide[after] for name, (before, after) in replacements.STAGES.items()}
    parts = [
        value.rename("value").reset_index().assign(objective=VAE, quantity=name, stderr=math.nan)
        for name, value in made.items()
    ]
    return pd.concat(parts, ignore_index=True)


# What is claimed: by how much models are above the codebook and what that is made of.


def excesses(frame: Any) -> Any:
    """By how much the models' D/β + R is above the codebook's of the same seed, nats, and the parts of the VAE's excess.

    - `frame`: a record's, or with a column `passes`.

    A row for each quantity, "above the codebook" or a part, objective, source, β and seed.
    """
    keys = [name for name in ("source", "beta", "seed", "passes") if name in frame]
    nats = frame[frame["quantity"] == "nats"]
    books = nats[nats["objective"] == CODEBOOK][[*keys, "value"]]
    both = nats[nats["objective"].isin([VAE, MANY])].merge(books, on=keys, suffixes=("", "_book"))
    above = both.assign(value=both["value"] - both["value_book"], quantity="above the codebook")
    parts = frame[frame["quantity"].isin(PARTS)]
    columns = [*keys, "objective", "quantity", "value"]
    whole: Any = pd.concat([above[columns], parts[columns]], ignore_index=True)
    return whole


def sandwich(frame: Any) -> Any:
    """From a record's frame the nats of every kind of code, estimates over seeds: an index (source, β), a column for each.

    The error of a lower bound is the larger one of that over seeds and that over its draws, which all seeds share.
    """
    nats = frame[frame["quantity"] == "nats"]
    found = {}
    for (place, beta, kind), rows in nats.groupby(["source", "beta", "objective"], sort=False):
        each = Estimate.over_runs(rows["value"].to_numpy())
        over_draws = float(rows["stderr"].mean()) if kind == LOWER else 0.0
        found[place, beta, kind] = Estimate(each.value, max(each.stderr, over_draws), each.n, "runs")
    table = pd.Series(found).unstack(sort=False)
    table.index.names = ["source", "beta"]
    return table


def _checks(plan: Plan, frame: Any) -> list[convergence.Check]:
    by = ["objective", "source", "at"]
    every = excesses(frame)
    every["at"] = every["beta"].map("{:g}".format)
    every = convergence.without(every, ["quantity", *by], plan.unclaimed)
    claims = {
        " ".join(map(str, key)): Estimate.over_runs(rows["value"].to_numpy())
        for key, rows in every[every["passes"] == plan.passes].groupby(["quantity", *by], sort=False)
    }
    sizes = {name: convergence.allowed(claim, plan.largest_error) for name, claim in claims.items()}
    names = every[["quantity", *by]].agg(" ".join, axis=1)
    first: Any = frame[frame["passes"] == plan.passes]
    return [
        convergence.not_claimed(convergence.errors(claims, plan.largest_error), plan.unclaimed),
        convergence.twice(every.assign(allowed=names.map(sizes)), by),
        _below(sandwich(first)),
        _adds_up(first),
        _no_worse(first),
    ]


def _below(table: Any) -> convergence.Check:
    """Whether no lower bound is above any code by more than two errors of their difference."""
    name, codes = "no lower bound is above what a code reaches", [VAE, MANY, CODEBOOK, GAUSSIAN]
    gaps = {
        f"{place}, β = {beta:g}, {code}": row[code].minus(row[LOWER], paired=False)
        for (place, beta), row in table.iterrows()
        if isinstance(row.get(LOWER), Estimate)
        for code in codes
    }
    gaps = {key: Estimate(each.value, 0.0 if math.isnan(each.stderr) else each.stderr) for key, each in gaps.items()}
    nearest = min(gaps, key=lambda key: gaps[key].value + 2 * gaps[key].stderr)
    passed = gaps[nearest].value + 2 * gaps[nearest].stderr >= 0
    return convergence.Check(name, bool(passed), f"of {len(gaps)} the nearest is {nearest}: {gaps[nearest]:+}")


def _adds_up(frame: Any) -> convergence.Check:
    """Whether the parts, from draws of their own, add up to the gap as it was measured in one piece."""
    wide = frame[frame["quantity"].isin([GAP, *PARTS])].pivot_table(
        index=["source", "beta", "seed"], columns="quantity", values="value"
    )
    left = (wide[GAP] - wide[list(PARTS)].sum(axis=1)).groupby(["source", "beta"])
    found = {f"{place}, β = {beta:g}": Estimate.over_runs(rows.to_numpy()) for (place, beta), rows in left}
    worst = max(found, key=lambda key: abs(found[key].value) - 2 * found[key].stderr)
    most = 0.02 + 2 * found[worst].stderr
    passed = abs(found[worst].value) <= most
    return convergence.Check(
        "the parts add up to the gap",
        bool(passed),
        f"what is left over at most is {worst}: {found[worst]:+}, {most:.2g} allowed",
    )


def _no_worse(frame: Any) -> convergence.Check:
    """Whether the best Gaussians are no worse than the VAE's own encoder, and the best encoder no worse than these."""
    some = frame[frame["quantity"].isin(["amortisation", "family"])]
    found = {
        f"{quantity} {place}, β = {beta:g}": Estimate.over_runs(rows["value"].to_numpy())
        for (quantity, place, beta), rows in some.groupby(["quantity", "source", "beta"])
    }
    least = min(found, key=lambda key: found[key].value + 2 * found[key].stderr)
    passed = found[least].value + 2 * found[least].stderr >= -0.02
    return convergence.Check("no better encoder is worse", bool(passed), f"the least is {least}: {found[least]:+}")


def _said(plan: Plan, frame: Any) -> str:
    table, told = sandwich(frame), []
    parts = excesses(frame)
    for (place, beta), row in table.iterrows():
        above = parts[(parts["source"] == place) & (parts["beta"] == beta) & (parts["objective"] == VAE)]
        means = {name: Estimate.over_runs(rows["value"].to_numpy()) for name, rows in above.groupby("quantity", sort=False)}
        made = ", ".join(f"{name} {means[name]}" for name in PARTS)
        below = f"{row[LOWER]} to " if isinstance(row.get(LOWER), Estimate) else "at most "
        told.append(f"{place}, β = {beta:g}: {below}{row[CODEBOOK]}, VAE {row[VAE]} ({made})")
    return f"The least D/β + R on test images, nats, and a VAE's: {'; '.join(told)}."
