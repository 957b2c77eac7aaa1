"""One objective written in two ways: the VAE's with its rate in closed form, and with all its terms estimated from draws.

Both have the same minimum. With weight one on each, information, total correlation and the dimensions' divergences add up to
the rate, and their exact estimates, over the whole training set, to its estimate from the same draw of z. What a model that is
trained with them is worse by is the doing of their noise. A model of another weight has this noise too: it may end behind a VAE
under its own objective by as much, without a word against the objective.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from nbvae import checks, models, objectives, results
from nbvae.results import Estimate
from studies import convergence
from studies import objectives as all_objectives
from studies.lab import Lab, sweep
from studies.objectives import begun, likelihood, loss, schedule
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "What does a model lose where the terms of its objective are estimated from draws, and not computed?"
CHAPTER = "02_four_terms"
DATASETS = ("digits", "mnist", "glyphs")
CLOSED, DRAWN = "rate in closed form", "terms from draws"


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study, each as in the plan of `studies.objectives`.

    - `passes`, `again`, `against`: over the training images; how many seeds are trained for another number too, and which.
    - `start`, `start_passes`: the β and the passes of a β-VAE that all models of a seed begin with; 0 for fresh weights.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `draws`: how often the training images are gone through to measure a loss.
    - `largest_error`: the most that the standard error of the difference may be, in nats, unless it is a quarter of it.
    """

    passes: int = 400
    again: int = 3
    against: float = 2.0
    start: float = 0.0
    start_passes: int = 100
    latent_dim: int = 8
    hidden: tuple[int, ...] = (64,)
    batch: int = 100
    lr: float = 1e-2
    draws: int = 8
    largest_error: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)

    def __post_init__(self) -> None:
        super().__post_init__()
        convergence.accept_against(self.passes, self.against)
        for name in ("start_passes", "latent_dim", "batch", "draws"):
            checks.whole(name, getattr(self, name))
        checks.not_negative("start", self.start)
        checks.positive("largest_error", self.largest_error)
        if len(self.seeds) < 2 or not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    """As models are trained in the study of objectives."""
    same = all_objectives.plan(dataset, budget).settings
    return Plan(**{name: value for name, value in same.items() if name not in ("rows", "margin", "largest_error")})


def run(plan: Plan, lab: Lab) -> Record:
    apart = ("passes", "again", "against", "seeds", "largest_error")
    common = {name: value for name, value in plan.settings.items() if name not in apart}
    cells = [
        {"written": written, "passes": passes, "seeds": seeds} | common
        for passes, seeds in convergence.trained(plan).items()
        for written in (DRAWN, CLOSED)
    ]
    found = lab.map(train, cells, "trainings")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    behind = cost(whole)
    both = cost(frame)
    compared = both[both["seed"].isin(plan.seeds[: plan.again])].assign(allowed=plan.largest_error)
    return Record.of(
        __name__,
        plan,
        lab,
        whole.to_dict("records"),
        checks=[
            convergence.errors({"the difference": behind_of(behind)}, plan.largest_error),
            convergence.twice(compared, ["objective"]),
        ],
        said=f"With its terms from draws a VAE ends {behind_of(behind)} nats above one with the rate in closed form, under the"
        " loss of both.",
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
    written: str,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one way of writing, one for each seed: their D + R on the training images."""
    ds = load(dataset, binarize, images)
    make = partial(models.VAE, shape=ds.shape, latent_dim=latent_dim, hidden=hidden, **likelihood(ds))
    how: Any = {"seeds": seeds, "store": store}
    begin = begun(make, ds, start, schedule(ds, start_passes, batch, lr, device), how)
    runs = sweep(begin, ds, objectives=[ways()[written]], config=schedule(ds, passes, batch, lr, device), **how)
    place = {"objective": written, "split": "train", "quantity": "loss", "stderr": None, "n": len(ds.train)}
    return {
        "rows": [
            place | {"seed": each.config.seed, "value": loss(each.model, objectives.VAE(), ds.train, batch, draws)}
            for each in runs
        ]
    }


def ways() -> dict[str, Any]:
    """The objective D + R, written in both ways."""
    return {CLOSED: objectives.VAE(), DRAWN: objectives.BetaTCVAE(1.0, 1.0, 1.0, estimator="exact")}


def cost(frame: Any) -> Any:
    """By how much more nats models end whose terms are from draws, in pairs of seeds."""
    every = results.paired(frame, objective=CLOSED)
    return every.assign(quantity="cost of draws")


def behind_of(cost: Any) -> Estimate:
    """That cost as a mean over seeds."""
    return Estimate.over_runs(cost["value"].to_numpy())
