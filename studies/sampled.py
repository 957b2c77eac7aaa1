"""One objective written in two ways: with the rate in closed form, and with all its terms estimated from draws.

D + R + (w − 1) I(x; z), an objective with weight w on information, is written with the rate either in closed form or as
log q(z|x) − log p(z) at the draws of z that D has too: w = 1 is the VAE. Both have the same minimum. What a model that is
trained on the second is worse by is the doing of its noise, and not of the objective. Where, in the study of objectives, a
model is behind another under its own objective, this says whether a writing with less noise puts it first.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor, distributions

from nbvae import checks, models, objectives, posterior, results
from studies import convergence
from studies import objectives as all_objectives
from studies.lab import Lab, sweep
from studies.objectives import begun, every_row, likelihood, loss, schedule
from studies.plan import load
from studies.record import Record

QUESTION = "What does a model lose where the terms of its objective are estimated from draws, and not computed?"
CHAPTER = "02_four_terms"
DATASETS = ("digits", "mnist", "glyphs")
CLOSED, DRAWN = "rate in closed form", "terms from draws"
WEIGHTS = {"VAE": 1.0, "weight 2 on I": 2.0}  # on information


@dataclass(frozen=True, kw_only=True)
class Plan(all_objectives.Plan):
    """Settings of the study, each as in the plan of `studies.objectives`.

    - `rows`: the names of the objectives; those of `WEIGHTS` are trained as written in both ways.
    - `largest_error`: the most that the standard error of a difference may be, in nats, unless it is a quarter of it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("largest_error", self.largest_error)
        if self.margin:
            raise ValueError(f"margin must be 0: nothing is excused here; got {self.margin:g}")


def plan(dataset: str, budget: str) -> Plan:
    """As models are trained in the study of objectives: those that failed its cross table on MNIST, and more seeds."""
    same = all_objectives.plan(dataset, budget).settings
    rows = {"rows": ("VAE", "weight 2 on I", "DIP-VAE II"), "closed": (), "margin": 0.0, "largest_error": 0.05}
    full = Plan(**same | rows)
    return full.changed(seeds=tuple(range(8)), again=8, draws=4) if budget == "full" else full


@dataclass(frozen=True)
class Written(objectives.Objective):
    """D + R + (w − 1) I(x; z), with I(x; z) from the draws of z and all training images, and R `closed` or from them too."""

    weight: float
    closed: bool

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        each, prior = model.posterior(x), model.prior()
        z = each.rsample()
        rate = distributions.kl_divergence(each, prior)
        terms = objectives.Terms(-model.likelihood(z).log_prob(x), rate)
        total = terms.distortion + (rate if self.closed else each.log_prob(z) - prior.log_prob(z))
        if self.weight != 1:
            every = x if reference is None else reference
            codes = posterior.mean_and_std(model.posterior(every))
            mixture = posterior.log_densities(z, *codes, -math.log(len(every)), latents=False).joint
            total = total + (self.weight - 1) * (each.log_prob(z) - mixture)
        return objectives.Loss(total, terms)


def run(plan: Plan, lab: Lab) -> Record:
    apart = ("passes", "again", "against", "seeds", "largest_error", "margin", "closed")
    common = {name: value for name, value in plan.settings.items() if name not in apart}
    ways = [(name, way) for name in plan.rows for way in ((CLOSED, DRAWN) if name in WEIGHTS else (CLOSED,))]
    cells = [
        {"objective": name, "written": way, "passes": passes, "seeds": seeds} | common
        for passes, seeds in convergence.trained(plan).items()
        for name, way in ways
    ]
    found = lab.map(train, cells, "trainings")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    found_costs = results.over_seeds(costs(whole), "objective")
    both = costs(frame)
    # Only what is clear of zero is claimed, and only its side; where nothing is, there is nothing for longer training to turn.
    some = convergence.clear(both[both["passes"] == plan.passes], ["objective"], least=1.0)["objective"].unique()
    both = both[both["seed"].isin(plan.seeds[: plan.again]) & both["objective"].isin(some)]
    return Record.of(
        __name__,
        plan,
        lab,
        whole.to_dict("records"),
        checks=[
            crossed(whole, plan.largest_error)[1],
            convergence.errors({f"the cost of draws, {name}": each for name, each in found_costs.items()}, plan.largest_error),
            *([convergence.same_side(both, ["objective"])] if len(both) else []),
        ],
        said="Trained with terms from draws, a model ends above one with the rate in closed form, under their objective, by "
        + ", ".join(f"{each} nats ({name})" for name, each in found_costs.items())
        + ".",
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    rows: list[str],
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    start: float,
    start_passes: int,
    objective: str,
    written: str,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one objective, written in one way, one for each seed: their losses under every objective."""
    ds = load(dataset, binarize, images)
    kinds = {name: kind_of(name, CLOSED, latent_dim) for name in rows}
    make = partial(models.VAE, shape=ds.shape, latent_dim=latent_dim, hidden=hidden, **likelihood(ds))
    how: Any = {"seeds": seeds, "store": store}
    begin = begun(make, ds, start, schedule(ds, start_passes, batch, lr, device), how)
    kind = kind_of(objective, written, latent_dim)
    runs = sweep(begin, ds, objectives=[kind], config=schedule(ds, passes, batch, lr, device), **how)
    place = {"objective": objective, "written": written, "split": "train", "quantity": "loss", "stderr": None}
    return {
        "rows": [
            place
            | {"n": len(ds.train), "under": name, "seed": each.config.seed}
            | {"value": loss(each.model, under, ds.train, batch, draws)}
            for each in runs
            for name, under in kinds.items()
        ]
    }


def kind_of(name: str, written: str, latent_dim: int) -> Any:
    """The objective of this name, written in this way where it is one of both."""
    if name in WEIGHTS:
        return Written(WEIGHTS[name], written == CLOSED)
    kind, settings = every_row(latent_dim)[name]
    return objectives.NAMED[kind](**settings)


def costs(frame: Any) -> Any:
    """By how much more nats models end whose terms are from draws, under the objective of both, in pairs of seeds."""
    own = frame[(frame["under"] == frame["objective"]) & frame["objective"].isin(list(WEIGHTS))]
    return results.paired(own, written=CLOSED).assign(quantity="cost of draws")


def crossed(frame: Any, largest_error: float) -> tuple[pd.DataFrame, convergence.Check]:
    """Models with the rate in closed form, under each objective: how far each is above the objective's own."""
    return convergence.cross_table(frame[frame["written"] == CLOSED], largest_error)
