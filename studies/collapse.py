"""Small sources whose answers are known: the slope of the line of log MSE against rate, and from which β on all is collapsed.

*The line.* With σ at its best the distortion is D* = n/2 log(2πe MSE/n). On a source that fills r dimensions of its n the rate
grows as −r/2 log MSE, so that D* falls with slope −n/r. Three losses: σ fixed at several levels, one σ in closed form, and the
talk's loss, with a σ for each example.

*Collapse.* From β_c on, λ_1/σ² or λ_1 over the mean eigenvalue, a model that is collapsed is a local minimum. A model with a
code can be lower all the same. Each β is trained from fresh weights, *cold*, and once more *continued* from the model of the β
below.

For two points, one of them rare, the optimum is known: `two_points` finds it by integration over one dimension.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special

from nbvae import analytic, checks, data, estimators, models, objectives, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "Is D* against R a straight line, of which slope, and does all collapse at the β of the linear theory?"
CHAPTER = "04_sigma_and_beta"
DATASETS = ("digits",)
# The dimensions n of the data, r of what they fill, and the latents.
LINES = {"plane": (2, 2, 2), "curve": (6, 1, 1), "roll": (3, 2, 2), "sphere": (16, 2, 3)}
LEVELS, ONE, EACH = "levels of fixed σ", "one σ", "a σ for each example"
TWO, CURVE, OWN = "two points", "curve", "the data set"
COLD, CONTINUED = "cold", "continued"
_MARK = 0.05  # a code is lost where its rate is below this share of the rate at the smallest β


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study; `dataset` is one of the sources of the second half.

    - `lines`: the sources of the first half, among `LINES`.
    - `levels`: of fixed σ, water levels s as shares of the largest eigenvalue; the slope is that of the smallest four.
    - `betas`: of one σ, and of a σ for each example, on the plane.
    - `points`: how many examples a source has.
    - `rare`: the share of the rare one of two points.
    - `noise`: the standard deviation of what is added to the curve, or with one σ nothing would bound its likelihood.
    - `ratios`: βs over the threshold β_c of the linear theory.
    - `passes`: over the training images of the data set, at each β; `small_passes`: over the examples of the other sources;
      `line_passes`: for the first half. Some seeds are also trained for twice as many.
    - `again`: how many of the seeds.
    - `hidden`, `batch`, `lr`, `own_hidden`, `own_lr`, `latent_dim`: of the models and their training, under a one-cycle
      schedule; the last three are those of the data set.
    """

    binarize: str | None = "none"
    lines: tuple[str, ...] = tuple(LINES)
    levels: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.2, 0.5, 0.9)
    betas: tuple[float, ...] = (0.4, 0.6, 0.8, 0.9, 1.1, 1.25, 1.4, 1.8)
    points: int = 2000
    rare: float = 0.05
    noise: float = 0.03
    ratios: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.2, 1.5, 1.9, 2.2, 2.35, 2.5, 2.8)
    passes: int = 60
    small_passes: int = 100
    line_passes: int = 250
    again: int = 5
    hidden: tuple[int, ...] = (64, 64)
    batch: int = 200
    lr: float = 3e-3
    own_hidden: tuple[int, ...] = (128,)
    own_lr: float = 6e-3
    latent_dim: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.lines:
            checks.choice("a line", name, tuple(LINES))
        for name in ("levels", "betas", "ratios"):
            each = getattr(self, name)
            if len(each) < 3 or list(each) != sorted(set(each)) or each[0] <= 0:
                raise ValueError(
                    f"{name} must be at least 3 numbers > 0, from the smallest to the largest; got {checks.short(each)}"
                )
        if self.levels[-1] >= 1 or self.ratios[0] >= 1:
            raise ValueError("levels must be below 1, where the code is empty, and the first of ratios too")
        if not 0 < self.rare < 0.5:
            raise ValueError(f"rare must be a share between 0 and .5, got {self.rare}")
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset not in DATASETS:
        n = full.data().train[0].numel()
        full = full.changed(latent_dim=max(1, min(8, (n - 1) // 2)), own_lr=full.own_lr * min(1.0, 256 / n))
    few = {"seeds": (0, 1), "again": 2}
    if budget == "quick":
        short = {"levels": (0.01, 0.03, 0.1, 0.5), "betas": (0.5, 0.8, 1.2, 1.8), "ratios": (0.5, 0.9, 1.2, 1.9, 2.6)}
        small = {
            "images": 1200,
            "passes": 8,
            "small_passes": 30,
            "line_passes": 50,
            "points": 1000,
            "lines": ("plane", "curve"),
        }
        return full.changed(**few, **short, **small).stretched("passes")
    if budget == "smoke":
        short = {"levels": (0.01, 0.1, 0.5), "betas": (0.5, 1.2, 1.8), "ratios": (0.5, 1.2, 2.4), "lines": ("plane",)}
        small = {
            "images": 300,
            "points": 200,
            "passes": 1,
            "small_passes": 1,
            "line_passes": 1,
            "hidden": (8,),
            "own_hidden": (8,),
        }
        return full.changed(**few, **short, **small)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    shared = ("points", "noise", "hidden", "batch", "lr")
    common = {name: plan.settings[name] for name in shared}
    own = {"hidden": plan.own_hidden, "lr": plan.own_lr, "latent_dim": plan.latent_dim}
    data_set = {name: plan.settings[name] for name in ("dataset", "binarize", "images")}
    rows = []
    for times, seeds in {2: plan.seeds[: plan.again], 1: plan.seeds}.items():  # the longest first
        how = common | {"passes": times * plan.small_passes, "seeds": seeds}
        lines = [
            how | {"source": name, "loss": loss, "places": places, "passes": times * plan.line_passes}
            for name in plan.lines
            for loss, places in ((LEVELS, plan.levels), (ONE, plan.betas), (EACH, plan.betas))
            if loss == LEVELS or name == "plane"
        ]
        starts = how | data_set | {"ratios": plan.ratios, "rare": plan.rare, "latent_dim": 1}
        ends = [starts | {"source": name} for name in (CURVE, TWO)]
        ends.append(starts | own | {"source": OWN, "passes": times * plan.passes})
        for function, cells, what in ((threshold, ends, "collapse"), (line, lines, "lines")):
            found = lab.map(function, cells, what)
            rows += [row | {"times": times} for each in found for row in each["rows"]]
    frame = pd.DataFrame(rows)
    first: Any = frame[frame["times"] == 1].drop(columns="times")
    return Record.of(__name__, plan, lab, first.to_dict("records"), checks=_checks(plan, frame, first), said=_said(plan, first))


def examples(name: str, points: int, noise: float = 0.0, rare: float = 0.05) -> data.Dataset:
    """Examples of a source: training and test sets of `points` each, and the same ones for every seed.

    "plane" is a Gaussian of variances 1.6 and .4; "curve" goes once through six dimensions, as cosines of one angle; "roll" is
    a strip rolled up in three; "sphere" has its three dimensions in sixteen; "two points" are 0, and, for a share `rare`, 1.

    >>> examples("sphere", 100).train.shape, examples("two points", 100, rare=0.1).train.sum().item()
    (torch.Size([100, 16]), 10.0)
    """
    checks.choice("source", name, (*LINES, TWO))
    rng = np.random.default_rng(0)
    total = 2 * points
    if name == TWO:
        half = (np.arange(points) < round(rare * points)).astype(float)[:, None]
        values = np.concatenate([half, half])
    elif name == "plane":
        values = rng.standard_normal((total, 2)) * np.sqrt([1.6, 0.4])
    elif name == "curve":
        angle, number = np.pi * rng.random((total, 1)), np.arange(1, 7)
        values = np.cos(number * angle) / np.sqrt(number) + noise * rng.standard_normal((total, 6))
    elif name == "roll":
        angle, across = 1.5 * np.pi * (1 + rng.random((total, 1))), 2 * rng.random((total, 1)) - 1
        values = np.concatenate([angle * np.cos(angle) / 5, angle * np.sin(angle) / 5, across], 1)
    else:
        normal = rng.standard_normal((total, 3))
        basis = np.linalg.qr(rng.standard_normal((16, 3)))[0]
        values = normal / np.linalg.norm(normal, axis=1, keepdims=True) @ basis.T
    x = torch.as_tensor(values, dtype=torch.float32)
    return data.Dataset(name, train=x[:points], validation=x[points:], test=x[points:])


def line(
    source: str,
    loss: str,
    places: list[float],
    points: int,
    noise: float,
    hidden: list[int],
    batch: int,
    lr: float,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """Models of one source and loss at each level or β: rate, MSE and latents in use on test examples."""
    ds = examples(source, points)
    make = partial(models.VAE, ds.shape, LINES[source][2], hidden=hidden, likelihood="gaussian")
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    how: Any = {"seeds": seeds, "config": config, "store": store}
    if loss == LEVELS:
        largest = eigenvalues(ds.train)[0]
        runs = sweep(make, ds, [1.0], sigmas=[math.sqrt(share * largest) for share in places], **how)
    else:
        kind = objectives.LogMSE if loss == EACH else objectives.BetaVAE
        runs = sweep(partial(make, sigma="optimal"), ds, places, objective=kind, **how)
    rows = []
    for each in runs:
        point = estimators.evaluate(each.model, ds.test, n_samples=4)
        values = {"rate": point.rate, "mse": point.mse, "active": float(estimators.active_units(each.model, ds.test).count)}
        place = {"objective": source, "start": loss, "beta": each.objective.beta, "seed": each.config.seed}
        if loss == LEVELS:
            place["level"] = each.model.observation.scale.item() ** 2
        rows += _rows(place, values, "test")
    return {"rows": rows}


def threshold(
    source: str,
    dataset: str,
    binarize: str | None,
    images: int | None,
    ratios: list[float],
    rare: float,
    points: int,
    noise: float,
    hidden: list[int],
    latent_dim: int,
    batch: int,
    lr: float,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """Models of one source at βs around its threshold, cold and continued: rate, and what they gain on the collapsed model."""
    ds = load(dataset, binarize, images) if source == OWN else examples(source, points, noise, rare)
    variance = eigenvalues(ds.train)
    given = float(variance[0]) if source == TWO else None  # σ² of the points, so that their β_c is 1
    sigma = "optimal" if given is None else math.sqrt(given)
    first = variance[0] / (given or variance.mean())
    make = partial(models.VAE, ds.shape, latent_dim, hidden=hidden, likelihood="gaussian", sigma=sigma)
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    how: Any = {"seeds": seeds, "config": config, "store": store}
    cold = sweep(make, ds, [ratio * first for ratio in ratios], **how)
    runs: list[tuple[str, Any]] = [(COLD, each) for each in cold]
    before = cold[: len(seeds)]
    for ratio in ratios:
        started = iter([deepcopy(each.model) for each in before])
        before = sweep(lambda started=started: next(started), ds, [ratio * first], **how)
        runs += [(CONTINUED, each) for each in before]
    nothing = collapsed(variance, given)
    rows = []
    for start, each in runs:
        point = estimators.evaluate(each.model, ds.train, each.objective.beta, n_samples=4)
        place = {"objective": source, "start": start, "beta": each.objective.beta, "seed": each.config.seed}
        place["level"] = each.objective.beta / first
        rows += _rows(place, {"rate": point.rate, "gain": nothing - point.loss()}, "train")
    return {"rows": rows}


def _rows(place: dict[str, Any], values: dict[str, float], split: str) -> list[dict[str, Any]]:
    rest = {"split": split, "stderr": None, "n": None}
    return [place | rest | {"quantity": name, "value": value} for name, value in values.items()]


def eigenvalues(x: torch.Tensor) -> np.ndarray:
    """Of the covariance of examples (N, *shape), from the largest, one for each dimension; `ValueError` without any variance.

    Of fewer examples than dimensions they are those of the products between examples, which is faster.

    >>> eigenvalues(torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])).tolist()
    [1.0, 0.0, 0.0]
    """
    flat = x.flatten(1).double()
    flat = flat - flat.mean(0)
    products = (flat @ flat.T if len(flat) < flat.shape[1] else flat.T @ flat) / len(flat)
    known = torch.linalg.eigvalsh(products).flip(0).numpy()
    return analytic.LinearGaussian(np.concatenate([known, np.zeros(flat.shape[1] - len(known))]), 1).eigenvalues


def collapsed(variance: np.ndarray, sigma2: float | None = None) -> float:
    """The loss of a model that says nothing, nats: with σ² as given, or the best, which is the mean eigenvalue.

    >>> round(collapsed(np.array([1.0, 1.0]), 1.0), 4), round(collapsed(np.array([1.0, 1.0])), 4)  # log 2π + 1
    (2.8379, 2.8379)
    """
    n, total = len(variance), float(variance.sum())
    return n / 2 * math.log(2 * math.pi * (sigma2 or total / n)) + total / (2 * (sigma2 or total / n))


# Two points: what is best, without a network.


def code_of(parameters: Any, rare: float) -> tuple[float, float]:
    """Rate and MSE of a Gaussian code of the points 0 and 1, `rare` the share of 1, under the best decoder for it.

    - `parameters`: the means of the two posteriors and the logarithms of their standard deviations.

    The best decoder is the posterior mean of x given z, and its MSE the posterior variance, integrated over z.

    >>> [round(each, 6) for each in code_of((0.0, 0.0, 0.0, 0.0), 0.25)]  # a code that says nothing
    [0.0, 0.1875]
    """
    mean, log_std = np.array(parameters[:2]), np.array(parameters[2:])
    std, share = np.exp(log_std), np.array([1 - rare, rare])
    rate = float(share @ (0.5 * (std**2 + mean**2 - 1) - log_std))
    nodes = np.linspace(-9, 9, 361)
    weights = np.exp(-0.5 * nodes**2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
    z = mean[:, None] + std[:, None] * nodes  # from either posterior
    log_odds = [-0.5 * ((z - mean[i]) / std[i]) ** 2 - log_std[i] + math.log(share[i]) for i in (0, 1)]
    chance = special.expit(log_odds[1] - log_odds[0])  # of x = 1, given z
    return rate, float(share @ ((np.array([[0.0], [1.0]]) - chance) ** 2 @ weights))


@cache
def path(rare: float, step: float = 0.02) -> pd.DataFrame:
    """The best Gaussian code of two points as β rises, followed until it is lost: β over β_c, rate, MSE and gain.

    The gain is what D + βR gains by it on the collapsed model, with σ² the variance of the points, so that β_c is 1.
    """
    variance, rows = rare * (1 - rare), []

    def loss(parameters: Any, ratio: float) -> float:
        rate, mse = code_of(parameters, rare)
        return ratio * rate + mse / (2 * variance)

    starts = [(-0.2, far, 0.0, width) for far in (1.5, 2.5, 4.0) for width in (-0.5, -1.5)]
    best: Any = min((optimize.minimize(loss, start, (0.5,)) for start in starts), key=lambda each: each.fun)
    for number in range(10_000):
        ratio = 0.5 + step * number
        best = optimize.minimize(loss, best.x, (ratio,))
        rate, mse = code_of(best.x, rare)
        if rate < 1e-3:
            break
        rows.append({"ratio": ratio, "rate": rate, "mse": mse, "gain": 0.5 - best.fun})
    return pd.DataFrame(rows)


# What is read from the rows.


def stars(frame: Any, name: str, loss: str = LEVELS) -> Any:
    """The models of one source and loss, a row for each: rate, MSE, latents in use and `star`, which is D*."""
    some = frame[(frame["objective"] == name) & (frame["start"] == loss)]
    keys = [key for key in ("beta", "level", "seed") if some[key].notna().all()]
    table = some.pivot_table(index=keys, columns="quantity", values="value").reset_index()
    return table.assign(star=analytic.calibrated_distortion(table["mse"].to_numpy(), LINES[name][0]))


def slopes(frame: Any) -> Any:
    """The slope of D* against R over the four smallest levels of each source, seed by seed, and the latents in use there."""
    rows = []
    names = frame.loc[frame["start"] == LEVELS, "objective"].unique()
    for name in names:
        for seed, each in stars(frame, name).sort_values("level").groupby("seed"):
            few = each.head(4)
            slope = np.polyfit(few["rate"], few["star"], 1)[0]
            for quantity, value in (("slope", slope), ("latents in use", few["active"].mean())):
                rows.append({"objective": name, "quantity": quantity, "seed": seed, "value": value})
    return pd.DataFrame(rows)


def straightness(frame: Any, least: float) -> Any:
    """How far the models of the plane with a rate of at least `least` are from a straight line, root mean square in nats.

    A row for each loss and seed. Of one σ, models lie at the two ends of the line, so it says little there.
    """
    rows = []
    for loss in (LEVELS, ONE, EACH):
        for seed, each in stars(frame, "plane", loss).groupby("seed"):
            some = each[each["rate"] >= least]
            if len(some) > 2:
                fit = np.polyfit(some["rate"], some["star"], 1)
                off = float(np.sqrt(np.mean((np.polyval(fit, some["rate"]) - some["star"]) ** 2)))
                for quantity, value in (("off the line", off), ("slope", fit[0])):
                    rows.append({"objective": loss, "quantity": quantity, "seed": seed, "value": value})
    return pd.DataFrame(rows)


def above(frame: Any) -> Any:
    """By how much D* of the models of the plane is above Shannon's bound at their rate, for each loss, β or level, and seed."""
    spectrum = eigenvalues(examples("plane", 100_000).train)
    parts = []
    for loss in (LEVELS, ONE, EACH):
        table = stars(frame, "plane", loss)
        bound = analytic.gaussian_distortion_rate(spectrum, table["rate"].to_numpy())
        excess = table["star"] - analytic.calibrated_distortion(np.asarray(bound), 2)
        parts.append(table.assign(objective=loss, quantity="above the bound", value=excess))
    return pd.concat(parts)[["objective", "quantity", "beta", "seed", "rate", "value"]]


def crossings(frame: Any) -> Any:
    """The β over β_c at which the code is lost, cold and continued, and up to which the continued one is the better model.

    A row for each source, quantity and seed. Between two βs of the grid it is read off on a straight line over log β. What is
    still there at the last β has the last β.
    """
    rows = []
    for name in frame.loc[frame["start"] == COLD, "objective"].unique():
        some = frame[(frame["objective"] == name) & frame["start"].isin((COLD, CONTINUED))]
        for (start, seed), each in some.groupby(["start", "seed"]):
            table = each.pivot_table(index="level", columns="quantity", values="value").sort_index()
            mark = _MARK * table["rate"].iloc[0]
            lost = _falls(table["rate"], mark)
            rows.append({"objective": name, "quantity": start, "seed": seed, "value": lost})
            if start == CONTINUED:  # where no code is left none is better
                better = min(lost, _falls(table["gain"], 0.0))
                rows.append({"objective": name, "quantity": "better", "seed": seed, "value": better})
    return pd.DataFrame(rows)


def endings(frame: Any) -> Any:
    """Between which βs of the grid codes end: a row for each source and `quantity`, cold, continued, or continued and better.

    `every` is the last β over β_c up to which every seed has one, 0 where there is none; `none` is the first from which on no
    seed has one, infinite where some have one to the end. A model has a code if its rate is more than a twentieth of that of
    the continued model of its seed at the smallest β; continued models are better where they gain on the collapsed one, too.
    """
    rows = []
    for name in frame.loc[frame["start"] == COLD, "objective"].unique():
        some = frame[(frame["objective"] == name) & frame["start"].isin((COLD, CONTINUED))]
        table = some.pivot_table(index="level", columns=["start", "quantity", "seed"], values="value").sort_index()
        mark = _MARK * table[CONTINUED, "rate"].iloc[0]
        codes: dict[str, Any] = {start: table[start, "rate"] > mark for start in (COLD, CONTINUED)}
        codes["better"] = codes[CONTINUED] & (table[CONTINUED, "gain"] > 0)
        for quantity, has in codes.items():
            every, some_left = has.all(axis=1).cummin(), has.any(axis=1)[::-1].cummax()[::-1]
            place = {"every": has.index[every].max() if every.any() else 0.0}
            place["none"] = has.index[~some_left].min() if not some_left.all() else math.inf
            rows.append({"objective": name, "quantity": quantity} | place)
    return pd.DataFrame(rows)


def counts(frame: Any) -> Any:
    """MSE over the level s of the models of each source, at the coarsest and the finest of the four smallest levels, by seed.

    By so many latents an optimum seems to be moved: the slope of D* against R is −n over it.
    """
    rows = []
    for name in frame.loc[frame["start"] == LEVELS, "objective"].unique():
        for seed, each in stars(frame, name).sort_values("level").groupby("seed"):
            count = (each["mse"] / each["level"]).head(4)
            for quantity, value in (("MSE/s, coarse", count.iloc[-1]), ("MSE/s, fine", count.iloc[0])):
                rows.append({"objective": name, "quantity": quantity, "seed": seed, "value": value})
    return pd.DataFrame(rows)


def gaps(frame: Any) -> Any:
    """The logarithm of how much farther continued models keep a code than cold ones, for each source and seed."""
    ends = crossings(frame)
    wide = ends[ends["quantity"] != "better"].pivot_table(index=["objective", "seed"], columns="quantity", values="value")
    return np.log(wide[CONTINUED] / wide[COLD]).rename("value").reset_index().assign(quantity="gap")


def _falls(values: Any, mark: float) -> float:
    """Where values over an index fall below a mark for the first time."""
    place, value = np.log(values.index.to_numpy()), values.to_numpy()
    low = np.flatnonzero(value < mark)
    if not len(low):
        return float(np.exp(place[-1]))
    i = low[0]
    if i == 0:
        return float(np.exp(place[0]))
    share = (value[i - 1] - mark) / (value[i - 1] - value[i])
    return float(np.exp(place[i - 1] + share * (place[i] - place[i - 1])))


def _checks(plan: Plan, frame: Any, first: Any) -> list[convergence.Check]:
    again, found = plan.seeds[: plan.again], []
    for what, few in ((slopes, ["slope"]), (crossings, [CONTINUED, "better"])):
        both: Any = pd.concat([what(each).assign(passes=times) for times, each in frame.groupby("times")])
        both = both[both["seed"].isin(again) & both["quantity"].isin(few)]
        size = both.groupby(["objective", "quantity"])["value"].transform("mean").abs()
        check = convergence.twice(both.assign(allowed=0.1 * size), ["objective"])
        found.append(replace(check, name=f"twice the passes move nothing that is claimed: {', '.join(few)}"))
    kept: Any = pd.concat([gaps(each).assign(passes=times) for times, each in frame.groupby("times")])
    check = convergence.same_side(kept[kept["seed"].isin(again) & kept["objective"].isin((TWO, CURVE))], ["objective"])
    found.append(replace(check, name="twice the passes leave the gap between cold and continued where it is"))
    ends = crossings(first)
    kept = ends[(ends["quantity"] != "better") & (ends["value"] >= plan.ratios[-1])]
    where = ", ".join(sorted({f"{name}, {start}" for name, start in zip(kept["objective"], kept["quantity"], strict=True)}))
    found.append(convergence.Check("every code is lost at some β of the grid", kept.empty, f"not lost: {where or 'none'}"))
    measured: Any = pd.concat([slopes(first), ends])
    spread = {
        f"{name}, {quantity}": Estimate.over_runs(each["value"].to_numpy())
        for (name, quantity), each in measured.groupby(["objective", "quantity"])
    }
    return [*found, convergence.errors(spread, 0.1)]


def _said(plan: Plan, first: Any) -> str:
    slope = {
        name: Estimate.over_runs(each["value"].to_numpy())
        for name, each in slopes(first).query("quantity == 'slope'").groupby("objective")
    }
    told = [f"{name} {each} (−n/r = {-LINES[name][0] / LINES[name][1]:g})" for name, each in slope.items()]
    lost = {
        key: Estimate.over_runs(each["value"].to_numpy())
        for key, each in crossings(first).groupby(["objective", "quantity"], sort=False)
    }
    ends = [f"{name} at {lost[name, COLD]} cold and {lost[name, CONTINUED]} continued" for name in (TWO, CURVE, OWN)]
    return f"Slopes of D* against R: {', '.join(told)}. In units of β_c codes are lost: {', '.join(ends)}."
