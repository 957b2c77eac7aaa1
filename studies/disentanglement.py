"""Whether objectives that weigh the total correlation give each known factor a latent of its own, and what chooses the axes.

β-VAEs and weights on TC, from many seeds, on glyphs with the weight, the slant and the family of their font. The weighted term
is estimated from the minibatch, by the unbiased weights of Chen et al. (2018): exact, it would cost many times as much. Each
code is scored on its own axes, on axes turned at random, and on axes turned by the labels of the training images. A rotation
leaves the rate and, with the decoder turned back, the distortion as they are, if the family of posteriors is turned along.
Independent latents are not, and `axes` says what that costs; two families that are, of any covariance and of one variance for
all latents, are held against them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from nbvae import checks, data, estimators, metrics, models, objectives, posterior, training
from nbvae.posterior import MINIBATCH
from nbvae.results import Estimate
from studies import convergence
from studies.axes import FullCovariance, OneVariance, cost_of_axes, curvature, labelled_axes, rotations
from studies.lab import Lab, sweep
from studies.objectives import loss
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "Does a weight on the total correlation give each known factor a latent of its own, and what chooses the axes?"
CHAPTER = "02_four_terms"
DATASETS = ("glyphs",)
DIAGONAL, ONE, FULL = "diagonal", "one variance", "full covariance"
SCORES = ("MIG", "importances")
FACTORS = ("weight", "slant", "family")


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the β-VAEs, from the smallest; 1, the VAE, must be among them, and at least one other.
    - `correlation`: the weights on TC, and `estimator` how it is estimated, one of `posterior.MINIBATCH`.
    - `free`: the β, one of `betas`, of the posteriors that have no axes.
    - `passes`: over the training images; some seeds are also trained for twice as many.
    - `again`: how many of the seeds.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `measured`: how many test images are scored, None for all; `turns`: random rotations that a score is averaged over.
    - `curved`: the number of test images at whose codes the decoder's curvature is taken.
    - `trees`: of the forests that predict factors.
    - `largest_error`: the most that the standard error of a cost of axes may be, in nats.
    """

    binarize: str | None = "threshold"
    betas: tuple[float, ...] = (1.0, 2.0, 4.0)
    correlation: tuple[float, ...] = (3.0, 6.0)
    estimator: str = "stratified"
    free: float = 4.0
    passes: int = 100
    again: int = 12
    latent_dim: int = 10
    hidden: tuple[int, ...] = (128,)
    batch: int = 100
    lr: float = 4e-3
    measured: int | None = None
    turns: int = 30
    curved: int = 64
    trees: int = 30
    largest_error: float = 0.25
    seeds: tuple[int, ...] = tuple(range(12))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("betas", "correlation"):
            each = getattr(self, name)
            if not each or min(each) <= 0 or list(each) != sorted(set(each)):
                raise ValueError(f"{name} must be numbers > 0, from the smallest to the largest; got {checks.short(each)}")
        if 1.0 not in self.betas or len(self.betas) < 2 or 1.0 in self.correlation:
            raise ValueError("betas must have 1, the VAE, and at least one other; correlation must not have 1")
        if self.free not in self.betas:
            raise ValueError(f"free must be one of betas, {self.betas}; got {self.free:g}")
        checks.choice("estimator", self.estimator, MINIBATCH)
        if not 3 <= self.again <= len(self.seeds):
            raise ValueError("what is left of the seeds without one must vary: at least three, also of those trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset, images=5000)
    if budget == "quick":
        short = full.changed(betas=(1.0, 4.0), correlation=(6.0,), images=1000, passes=40, seeds=(0, 1, 2), again=3)
        return short.changed(measured=1000, turns=5, curved=32, trees=10).stretched("passes")
    if budget == "smoke":
        few = full.changed(betas=(1.0, 4.0), correlation=(6.0,), images=300, passes=1, seeds=(0, 1, 2), again=3)
        return few.changed(latent_dim=4, hidden=(16,), measured=400, turns=2, curved=8, trees=2)
    return full


def rows_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """What is trained, by the names that tables have: the family of the posteriors, and β or the weight on TC."""
    found = {_beta(beta): {"family": DIAGONAL, "beta": beta, "weight": None} for beta in plan.betas}
    found |= {f"weight {each:g} on TC": {"family": DIAGONAL, "beta": 1.0, "weight": each} for each in plan.correlation}
    free = {f"{_beta(plan.free)}, {family}": {"family": family, "beta": plan.free, "weight": None} for family in (ONE, FULL)}
    return found | free


def _beta(beta: float) -> str:
    return "VAE" if beta == 1 else f"β = {beta:g}"


def run(plan: Plan, lab: Lab) -> Record:
    names = ("dataset", "binarize", "images", "estimator", "latent_dim", "hidden", "batch", "lr")
    names += ("measured", "turns", "curved", "trees")
    common = {name: plan.settings[name] for name in names}
    every = {2 * plan.passes: plan.seeds[: plan.again], plan.passes: plan.seeds}  # the longest first
    rows = dict(reversed(rows_of(plan).items()))  # so are full covariances, which are trained one by one
    cells = [
        {"objective": name, "passes": passes, "seeds": seeds} | row | common
        for passes, seeds in every.items()
        for name, row in rows.items()
    ]
    found = lab.map(train, cells, "disentanglement")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    by_passes: dict[Any, Any] = {passes: each.drop(columns="passes") for passes, each in frame.groupby("passes")}
    first = by_passes[plan.passes]
    return Record.of(
        __name__,
        plan,
        lab,
        first.to_dict("records"),
        checks=_checks(plan, by_passes),
        said=_said(plan, by_passes),
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    estimator: str,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    measured: int | None,
    turns: int,
    curved: int,
    trees: int,
    objective: str,
    family: str,
    beta: float,
    weight: float | None,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one objective, one for each seed: rate and distortion, scores of their codes, and costs of their axes."""
    ds = load(dataset, binarize, images)
    test = ds.test[:measured]
    known = [factors(ds, "train"), factors(ds, "test")[:measured]]
    make: Callable[[], Any] = partial(models.VAE, ds.shape, latent_dim, hidden=hidden)
    if family == ONE:
        make = lambda: models.VAE(ds.shape, latent_dim, hidden=hidden, encoder=OneVariance(ds.shape, latent_dim, hidden))  # noqa: E731
    if family == FULL:
        make = partial(FullCovariance, ds.shape, latent_dim, hidden)
    kind = objectives.BetaVAE(beta) if weight is None else objectives.BetaTCVAE(1.0, weight, 1.0, estimator)
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    rows = []
    for each in sweep(make, ds, objectives=[kind], seeds=seeds, config=config, store=store):
        place = {"objective": objective, "seed": each.config.seed}
        values = [("train", "loss", loss(each.model, kind, ds.train, batch, 1))]
        for split, x in (("train", ds.train), ("test", test)):
            point = estimators.evaluate(each.model, x, beta, 1)
            values += [(split, "rate", point.rate), (split, "distortion", point.distortion)]
        codes = [drawn(each.model, x) for x in (ds.train, test)]
        of_axes = None if weight is not None else beta  # what is derived is derived of D + βR
        found = scores([z for z, _ in codes], known, codes[1][1], turns, trees)
        found |= costs(each.model, test[:curved], found.pop("active"), found.pop("labelled"), of_axes, turns)
        values += [("test", name, value) for name, value in found.items()]
        rows += [place | {"split": split, "quantity": name, "value": value, "stderr": None} for split, name, value in values]
    return {"rows": [row | {"n": len(ds.train if row["split"] == "train" else ds.test)} for row in rows]}


def factors(ds: data.Dataset, split: str) -> np.ndarray:
    """The factors of glyphs that do not depend on each other, (N, 3): weight, slant, and the family.

    Fonts with serifs and fonts of one width exclude each other here, and no code has a latent for each of two such factors
    alone. They are one factor: 0 has neither, 1 serifs, 2 one width.

    >>> from nbvae import data
    >>> found = factors(data.load("glyphs"), "test")
    >>> [len(np.unique(each)) for each in found.T]
    [2, 2, 3]
    """
    if ds.factors is None or not {"weight", "slant", "serif", "mono"} <= set(ds.factors.levels):
        raise ValueError(f"disentanglement is measured on known factors, and {ds.name} has not those of glyphs")
    known = ds.factors.by_name(split)
    return torch.stack([known["weight"], known["slant"], known["serif"] + 2 * known["mono"]], dim=1).numpy()


@torch.no_grad()
def drawn(model: Any, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A draw of the code of each example, and the posterior means, (N, k) each; the same noise for all models."""
    like = model.prior().mean
    with training.seeded(0, like.device):
        q = model.eval().posterior(x.to(like))
        return q.sample().cpu().double().numpy(), q.mean.cpu().double().numpy()


def scores(codes: list[np.ndarray], known: list[np.ndarray], means: np.ndarray, turns: int, trees: int) -> dict[str, Any]:
    """Scores of the codes of test images, on the latents and on other axes; which latents are active, and the labelled axes.

    - `codes`, `known`: codes and factors of the training and of the test images. Of the first are only the labelled axes.
    - `means`: posterior means of the test images. Axes are turned among the active latents.
    """
    active = means.var(0) > 0.01
    train, test = codes[0][:, active], codes[1]
    labelled = labelled_axes(train, known[0])

    def turned(axes: np.ndarray) -> np.ndarray:
        z = test.copy()
        z[:, active] = z[:, active] @ axes
        return z

    own = metrics.information_gap(test, known[1])
    random = [metrics.information_gap(turned(axes), known[1]).value for axes in rotations(train.shape[1], turns)]
    found: dict[str, Any] = {"active": active, "labelled": labelled, "active latents": float(active.sum())}
    found |= {"MIG": own.value, "MIG, random axes": float(np.mean(random))}
    found |= {"MIG, labelled axes": metrics.information_gap(turned(labelled), known[1]).value}
    found |= {f"MIG of {name}": float(gap) for name, gap in zip(FACTORS, own.gaps, strict=True)}
    forests = metrics.importances(test, known[1], trees)
    found |= {"importances": forests.disentanglement, "informativeness": forests.informativeness}
    found |= {f"informativeness of {name}": float(each) for name, each in zip(FACTORS, forests.saved, strict=True)}
    return found | {"importances, labelled axes": metrics.importances(turned(labelled), known[1], trees).disentanglement}


def costs(model: Any, x: Tensor, active: np.ndarray, labelled: np.ndarray, beta: float | None, turns: int) -> dict[str, float]:
    """What independent latents lose on the axes of the active latents, on random and on labelled ones, nats; without β, none.

    And how far the variances of a diagonal posterior are from those that follow: the mean |log σ_i²(1 + F_ii/β)|.
    """
    if beta is None:
        return {}
    with torch.no_grad():
        q = model.posterior(x.to(model.prior().mean))
    whole = curvature(model, q.mean)
    information = whole[:, active][:, :, active]
    random = [cost_of_axes(information, beta, axes) for axes in rotations(len(labelled), turns)]
    found = {"cost of axes": cost_of_axes(information, beta), "cost of random axes": float(np.mean(random))}
    found |= {"cost of labelled axes": cost_of_axes(information, beta, labelled)}
    if isinstance(q, torch.distributions.Independent):
        std = posterior.mean_and_std(q)[1].cpu().double()
        follow = 1 + whole.diagonal(dim1=-2, dim2=-1) / beta
        found["misfit of variances"] = (2 * std.log() + follow.log()).abs().mean().item()
    return found


# What is read from the rows.


def wide(frame: Any) -> Any:
    """A row for each model, by objective and seed, a column for each quantity: "loss", "D" and "R" on training images."""
    train = frame["split"] == "train"
    names = frame["quantity"].where(~train, frame["quantity"].map({"loss": "loss", "distortion": "D", "rate": "R"}))
    return frame.assign(quantity=names).pivot_table(index=["objective", "seed"], columns="quantity", values="value", sort=False)


def sides(frame: Any) -> Any:
    """What may be claimed to be on one side of zero: a row for each objective, quantity and seed.

    - "random axes cost more": by how much, in nats, and for the β of the other families "…, than of one variance". (Not than of
      full covariances: their loss is the same on all axes, but what random ones would cost grows as long as they are trained.)
    - "labelled axes cost more"; "MIG, labelled axes" and "MIG, random axes", less that on the own axes;
    - "…, at equal distortion": a score of a weight on TC less that of β-VAEs with its distortion on training images;
    - "loss and …": the rank correlation over seeds of the loss and a score, a mean over objectives;
    - "… by seeds": one half less the `share` of a score's variance that lies between objectives. The last two are pseudovalues.
    """
    table, parts = wide(frame), []

    def put(quantity: str, values: Any, objective: str | None = None) -> None:
        """Values by objective and seed, or by seed for one objective."""
        rows = values.dropna().rename("value").reset_index().assign(quantity=quantity)
        parts.append(rows if objective is None else rows.assign(objective=objective))

    more = (table["cost of random axes"] - table["cost of axes"]).dropna()
    put("random axes cost more", more)
    free = [name for name in more.index.unique("objective") if name.endswith((ONE, FULL))]
    for name in free:
        base, _, family = name.rpartition(", ")
        if family == ONE:
            put(f"random axes cost more, than of {ONE}", more.loc[base] - more.loc[name], base)
    diagonal = table.drop(free, level="objective")
    put("labelled axes cost more", diagonal["cost of labelled axes"] - diagonal["cost of axes"])
    for axes in ("labelled axes", "random axes"):
        put(f"MIG, {axes}", diagonal[f"MIG, {axes}"] - diagonal["MIG"])
    losses = diagonal["loss"].unstack("seed")
    for score in SCORES:
        each = diagonal[score].unstack("seed").loc[losses.index, losses.columns]
        put(f"{score}, at equal distortion", _beside(diagonal, score))
        related = pseudovalues(_rank_correlation, losses.to_numpy(), each.to_numpy())
        put(f"loss and {score}", pd.Series(related, index=losses.columns), "all")
        put(f"{score} by seeds", pd.Series(0.5 - pseudovalues(share, each.to_numpy()), index=losses.columns), "all")
    return pd.concat(parts, ignore_index=True)


def _beside(table: Any, score: str) -> Any:
    """A score of the weights on TC less that of β-VAEs at the same distortion, on a straight line between two of them."""
    line = [name for name in table.index.unique("objective") if " on TC" not in name]
    found = {}
    for name in table.index.unique("objective").drop(line):
        for seed, each in table.loc[name].iterrows():
            known = table.loc[[(one, seed) for one in line]].sort_values("D")
            inside = known["D"].iloc[0] <= each["D"] <= known["D"].iloc[-1]
            found[name, seed] = each[score] - np.interp(each["D"], known["D"], known[score]) if inside else math.nan
    return pd.Series(found, index=pd.MultiIndex.from_tuples(list(found), names=["objective", "seed"]), dtype=float)


def share(scores: np.ndarray) -> float:
    """The share of the variance of scores (objectives, seeds) that lies between objectives, by the analysis of variance.

    What the means of objectives vary by chance is taken off, so that it may be below 0.

    >>> rng = np.random.default_rng(0)
    >>> bool(abs(share(3 * rng.standard_normal((4000, 1)) + rng.standard_normal((4000, 5))) - 0.9) < 0.02)
    True
    """
    within = scores.var(1, ddof=1).mean()
    between = scores.mean(1).var(ddof=1) - within / scores.shape[1]
    return float(between / (between + within)) if between + within > 0 else 0.0


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, over the seeds of each objective, (objectives, seeds); a mean over objectives."""
    ranks = [stats.rankdata(each, axis=1) for each in (first, second)]
    a, b = (each - each.mean(1, keepdims=True) for each in ranks)
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return float(np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 0).mean())


def pseudovalues(function: Callable[..., float], *tables: np.ndarray) -> np.ndarray:
    """Of a number made of tables (objectives, seeds), one value for each seed, whose mean is the jackknife's estimate.

    Their spread gives its error. Of a mean over seeds they are the seeds' own values.

    >>> pseudovalues(lambda table: float(table.mean()), np.array([[1.0, 2.0, 6.0]])).tolist()
    [1.0, 2.0, 6.0]
    """
    n = tables[0].shape[1]
    without = [function(*(np.delete(table, seed, axis=1) for table in tables)) for seed in range(n)]
    return n * function(*tables) - (n - 1) * np.array(without)


def _checks(plan: Plan, by_passes: dict[Any, Any]) -> list[convergence.Check]:
    """On its side after twice the passes is what is claimed; and the costs of axes are known well enough."""
    every = {passes: sides(frame) for passes, frame in by_passes.items()}
    keys = ["objective", "quantity"]
    clear = convergence.clear(every[plan.passes], keys)[keys].drop_duplicates()
    some: Any = pd.concat([each.merge(clear, on=keys).assign(passes=passes) for passes, each in every.items()])
    nats = every[plan.passes][every[plan.passes]["quantity"].str.startswith("random axes cost more")]
    sizes = {" ".join(name): Estimate.over_runs(each["value"].to_numpy()) for name, each in nats.groupby(keys, sort=False)}
    return [
        convergence.same_side(some[some["seed"].isin(plan.seeds[: plan.again])], ["objective"]),
        convergence.errors(sizes, plan.largest_error),
    ]


def _said(plan: Plan, by_passes: dict[Any, Any]) -> str:
    found, later = (
        {key: Estimate.over_runs(each["value"].to_numpy()) for key, each in sides(frame).groupby(["objective", "quantity"])}
        for _, frame in sorted(by_passes.items())
    )
    name, more = _beta(plan.free), "random axes cost more"
    full = f"{name}, {FULL}", more
    return (
        f"Axes turned at random would cost the model with {name} {found[name, more]} nats more than its own. Where posteriors "
        f"may have any covariance that is {found[full]}, and {later[full]} after twice the passes. Of the variance of the MIG "
        f"between models a share of {0.5 - found['all', 'MIG by seeds']} lies between objectives, and over seeds its rank "
        f"correlation with the loss is {found['all', 'loss and MIG']:+}."
    )
