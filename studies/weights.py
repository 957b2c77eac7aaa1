"""Each weight on the terms of the ELBO by itself, and what it costs to estimate a weighted term from a minibatch.

Four families of one architecture. *β-VAEs*, all weights at once, are the line that the others are held against: at the
same mutual information, is there less of the other terms? *One weight*: D + a·I(x; z) + t·TC + m·DW with exact terms, two of
the weights 1. *Estimators*: one weight on the total correlation, estimated from the minibatch in the ways that are published
(Chen et al. 2018; Esmaeili et al. 2019; Kim & Mnih 2018), against the same weight on the exact term, under the exact objective.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from scipy.interpolate import PchipInterpolator

from nbvae import checks, models, objectives, results
from nbvae.posterior import MINIBATCH
from studies import convergence
from studies.lab import Lab, sweep
from studies.objectives import TERMS, begun, effects, likelihood, measured, schedule
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "What does a weight on one term of the ELBO do to all of them, and what does its estimate from a minibatch cost?"
CHAPTER = "02_four_terms"
DATASETS = ("digits", "mnist", "glyphs")
DISCRIMINATOR = "discriminator"
WEIGHTS = {"information": "alpha", "correlation": "beta", "dimension": "gamma"}  # names of `BetaTCVAE`'s


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the β-VAEs; 1, the VAE, must be among them.
    - `information`, `correlation`, `dimension`: the weights on I(x; z), TC and DW that are tried, in turn, with exact terms. DW
      is so small in a VAE that a weight on it has no effect to speak of, and none is tried by default.
    - `estimated`: the weight on TC that is also estimated, one of `correlation`.
    - `estimators`: how, among those of `posterior.MINIBATCH` and "discriminator".
    - `passes`: over the training images.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `sides`: objectives of which only the side of a change to a term is claimed, and not its size.
    - `start`, `start_passes`: what all models of a seed begin with, as for the study of objectives.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `draws`: how often the training images are gone through to measure a loss.
    - `largest_error`: the most that the standard error of a difference of losses may be, in nats.
    - `margin`: by how much more than its errors a model may be behind another under its own objective, in nats.
    """

    betas: tuple[float, ...] = (0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)
    information: tuple[float, ...] = (0.5, 2.0)
    correlation: tuple[float, ...] = (2.0, 6.0)
    dimension: tuple[float, ...] = ()
    estimated: float = 6.0
    estimators: tuple[str, ...] = (*MINIBATCH, DISCRIMINATOR)
    passes: int = 800
    again: int = 2
    against: float = 2.0
    sides: tuple[str, ...] = ()
    start: float = 0.0
    start_passes: int = 100
    latent_dim: int = 8
    hidden: tuple[int, ...] = (64,)
    batch: int = 100
    lr: float = 1e-2
    draws: int = 8
    largest_error: float = 0.1
    margin: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("betas", *WEIGHTS):
            each = getattr(self, name)
            if min(each, default=1) <= 0 or len(set(each)) < len(each):
                raise ValueError(f"{name} must be different numbers > 0; got {checks.short(each)}")
        if 1.0 not in self.betas or len(self.betas) < 2:
            raise ValueError("betas must have 1, the VAE, and at least one other")
        if any(1.0 in getattr(self, name) for name in WEIGHTS):
            raise ValueError(f"{', '.join(WEIGHTS)} must not have 1, which is the VAE")
        if self.estimated not in self.correlation:
            raise ValueError(f"estimated must be one of correlation, {self.correlation}; got {self.estimated:g}")
        for name in self.estimators:
            checks.choice("an estimator", name, (*MINIBATCH, DISCRIMINATOR))
        convergence.accept_against(self.passes, self.against)
        checks.not_negative("margin", self.margin)
        for name in self.sides:
            checks.choice("one of sides", name, rows_of(self))
        checks.not_negative("start", self.start)
        checks.whole("start_passes", self.start_passes)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    # Exact terms cost images × images × latents in each pass: of larger data sets a part is used.
    full = Plan(dataset=dataset, images=None if dataset == "digits" else 3000)
    if dataset in ("mnist", "glyphs"):
        # Wider networks learn so few images by heart, and their losses go on falling however long they are trained.
        full = full.changed(passes=300, against=0.5, hidden=(64,), latent_dim=10, lr=1e-2, start=0.1)
        full = full.changed(draws=2, largest_error=0.25, seeds=(0, 1, 2, 3, 4), again=5)
        full = full.changed(sides=(f"6 on correlation, {DISCRIMINATOR}",))
    if dataset == "mnist":  # found to be needed: under a weight on information by .03 nats
        full = full.changed(margin=0.1)
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        passes = max(1, round(min(1.0, full.against) * full.passes) // 40)
        short = full.changed(images=1000, passes=passes, against=2.0, seeds=(0, 1), again=2, draws=1)
        return short.stretched("passes")
    if budget == "smoke":
        few = {"betas": (1.0, 2.0), "information": (2.0,), "correlation": (6.0,), "estimators": ("hfvae", DISCRIMINATOR)}
        return full.changed(**few, images=200, passes=1, against=2.0, seeds=(0, 1), again=2, draws=1, hidden=(16,))
    return full


def rows_of(plan: Plan) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is trained, by the names that tables have: the name in `objectives.NAMED` and the settings of each."""
    found: dict[str, tuple[str, dict[str, Any]]] = {_beta(beta): ("beta_vae", {"beta": beta}) for beta in plan.betas}
    for name, setting in WEIGHTS.items():
        for weight in getattr(plan, name):
            settings = dict.fromkeys(WEIGHTS.values(), 1.0) | {setting: weight, "estimator": "exact"}
            found[f"{weight:g} on {name}"] = ("beta_tcvae", settings)
    for estimator in plan.estimators:
        settings: dict[str, Any] = {"alpha": 1.0, "beta": plan.estimated, "gamma": 1.0, "estimator": estimator}
        kind = "beta_tcvae"
        if estimator == DISCRIMINATOR:
            kind, settings = "factor_vae", {"gamma": plan.estimated - 1.0}
        found[f"{plan.estimated:g} on correlation, {estimator}"] = (kind, settings)
    return found


def _beta(beta: float) -> str:
    return "VAE" if beta == 1 else f"β = {beta:g}"


def run(plan: Plan, lab: Lab) -> Record:
    rows = rows_of(plan)
    exact = {name: row for name, row in rows.items() if not name.endswith(tuple(f", {each}" for each in plan.estimators))}
    names = ("dataset", "binarize", "images", "start", "start_passes", "latent_dim", "hidden", "batch", "lr", "draws")
    common = {name: plan.settings[name] for name in names} | {"under": exact}
    alike: dict[Any, dict[str, Any]] = {}  # what differs in numbers only is trained together
    for name, (kind, settings) in rows.items():
        alike.setdefault((kind, settings.get("estimator")), {})[name] = kind, settings
    cells = [
        {"rows": each, "passes": passes, "seeds": seeds} | common
        for passes, seeds in convergence.trained(plan).items()
        for each in alike.values()
    ]
    found = lab.map(train, cells, "weights")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    first: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    is_loss = first["quantity"].str.startswith("loss under ") & first["objective"].isin(list(exact))
    losses = first[is_loss].assign(under=first["quantity"].str.removeprefix("loss under "))
    return Record.of(
        __name__,
        plan,
        lab,
        first.to_dict("records"),
        checks=[convergence.cross_table(losses, plan.largest_error, plan.margin)[1], *_compared(plan, frame)],
        said=_said(plan, first),
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    start: float,
    start_passes: int,
    under: dict[str, Any],
    rows: dict[str, Any],
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of some objectives, one for each seed: their losses under the exact objectives, and their terms."""
    ds = load(dataset, binarize, images)
    make = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    own, kinds = (
        {name: objectives.NAMED[kind](**settings) for name, (kind, settings) in each.items()} for each in (rows, under)
    )
    how: Any = {"seeds": seeds, "store": store}
    begin = begun(partial(models.VAE, **make), ds, start, schedule(ds, start_passes, batch, lr, device), how)
    runs = sweep(begin, ds, objectives=[*own.values()], config=schedule(ds, passes, batch, lr, device), **how)
    names = [name for name in own for _ in seeds]
    return {
        "rows": [
            row | {"objective": name}
            for name, each in zip(names, runs, strict=True)
            for row in measured(each, ds.train, kinds, batch, draws)
        ]
    }


def costs(frame: Any, weight: float) -> Any:
    """By how much the models of this weight on an estimated TC are worse under the exact objective than its own, by seed."""
    exact = f"{weight:g} on correlation"
    some = frame["objective"].str.startswith(exact) & (frame["quantity"] == f"loss under {exact}")
    return results.paired(frame[some], objective=exact).assign(quantity="cost")


def beside_the_line(frame: Any) -> Any:
    """The terms of each model less those of β-VAEs at the same mutual information, seed by seed.

    Between the points of the β-VAEs their terms are interpolated by monotone cubics: these curves are so bent that chords would
    nearly double some of the differences. Where no β-VAE has so much information, or so little, there is no row. Of β-VAEs with
    exactly the same information, as at the ceiling of few images, the first counts.
    """
    wide = frame[frame["quantity"].isin(TERMS)].pivot_table(
        index=["objective", "seed"], columns="quantity", values="value", sort=False
    )
    line = [name for name in wide.index.unique("objective") if name == "VAE" or name.startswith("β")]
    rows = []
    for seed in wide.index.unique("seed"):
        known = wide.loc[[(name, seed) for name in line]].sort_values("mutual_information", kind="stable")
        known = known.drop_duplicates("mutual_information")
        if len(known) < 2:
            continue
        places = known["mutual_information"].to_numpy()
        for objective in wide.index.unique("objective").drop(line):
            own = wide.loc[objective, seed]
            at = own["mutual_information"]
            rows += [
                {
                    "objective": objective,
                    "seed": seed,
                    "quantity": name,
                    "value": own[name] - float(PchipInterpolator(places, known[name])(at)),
                }
                for name in TERMS
                if name != "mutual_information" and places[0] <= at <= places[-1]
            ]
    return pd.DataFrame(rows, columns=pd.Index(["objective", "seed", "quantity", "value"]))


def _compared(plan: Plan, frame: Any) -> list[convergence.Check]:
    """The other number of passes against what is claimed, if it is large: costs, changes to a term, those at equal information.

    Large is at least four times the largest error. At equal information some models have no β-VAE beside them, with some seed.
    """
    by_passes = {passes: each.drop(columns="passes") for passes, each in frame.groupby("passes")}
    beside: Any = pd.concat([beside_the_line(each).assign(passes=passes) for passes, each in by_passes.items()])
    beside = beside[beside["seed"].isin(plan.seeds[: plan.again])]
    whole = beside.groupby(["objective", "quantity"])["value"].transform("size") == len(by_passes) * plan.again
    both = [
        found.assign(passes=passes)
        for passes, each in by_passes.items()
        for found in (effects(each), costs(each, plan.estimated))
    ]
    reached = beside[whole]
    both.append(reached.assign(quantity="at equal information, " + reached["quantity"]))
    every: Any = pd.concat(both, ignore_index=True)
    some, least = plan.seeds[: plan.again], 4 * plan.largest_error
    by_side = every["objective"].isin(plan.sides) & (every["quantity"] != "cost")
    found = [convergence.twice_as_long(every[~by_side], plan.passes, some, least)]
    if plan.sides:
        large = convergence.claimed(every[by_side], plan.passes, some, least)
        found.append(convergence.same_side(large, ["objective"]))
    return found


def _said(plan: Plan, frame: Any) -> str:
    cost = results.over_seeds(costs(frame, plan.estimated), "objective")
    said = ", ".join(f"{name.rpartition(', ')[2]} {each:+}" for name, each in cost.items())
    line = beside_the_line(frame)
    exact = line[(line["objective"] == f"{plan.estimated:g} on correlation")]
    beside = (
        "no β-VAE of the plan has the mutual information of the exact one"
        if exact.empty
        else "at the mutual information of the exact one it has "
        + ", ".join(
            f"{results.Estimate.over_runs(each['value'].to_numpy()):+} nats of {str(name).replace('_', ' ')}"
            for name, each in exact.groupby("quantity", sort=False)
            if name in ("distortion", "total_correlation", "marginal_kl")
        )
        + " against the β-VAEs'"
    )
    return (
        f"Weight {plan.estimated:g} on the total correlation: under the exact objective models of estimated terms are worse "
        f"than the exact term's by {said} nats; {beside}."
    )
