"""Published objectives as weights on the terms of the ELBO: what each does to the terms once it is trained to convergence.

Every objective trains one architecture, with the exact term where the published one is an estimate from a minibatch, so that
what is compared is the objective and not its estimator. Every model is measured under every objective, on the training images
in batches as it was trained, with the same draws for all models, and taken apart into the terms.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import pandas as pd
import torch
from torch import Tensor, distributions

from nbvae import checks, data, estimators, models, objectives, posterior, results, training
from studies import convergence
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "What does each published objective do to the terms of the ELBO, once trained to convergence?"
CHAPTER = "02_four_terms"
DATASETS = ("digits", "mnist", "glyphs")
MOVED = {  # the weights on I(x; z), TC and DW where one is not 1
    "weight 2 on I": (2.0, 1.0, 1.0),
    "weight 6 on TC": (1.0, 6.0, 1.0),
    "weight 4 on DW": (1.0, 1.0, 4.0),
}
APART = 2000  # training images, at most, that a model is taken apart on: of so many log N is what information can be
TERMS = ("distortion", "rate", "mutual_information", "marginal_kl", "total_correlation", "dimension_kl")


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `rows`: the names of the objectives, among those of `every_row`; by default all. "VAE", which the others are compared
      with, must be one of them.
    - `passes`: over the training images.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `start`, `start_passes`: the β and the passes of a β-VAE that all models of a seed begin with; 0 for fresh weights. Where
      few images are learned by heart, a substitute that keeps latents alive can reach a lower D + R from fresh weights than
      D + R itself. From a common beginning of small β, objectives are compared and not how well they begin.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `draws`: how often the training images are gone through to measure a loss.
    - `largest_error`: the most that the standard error of a difference of losses may be, in nats.
    - `closed`: rows, of those that move a weight, whose objective has the rate in closed form, as `Weighed` writes it.
      The others are the library's, with all terms at the draws of z. Both have the same minimum, this one less noise.
    - `margin`: by how much more than its errors a model may be behind another under its own objective, in nats.
    """

    rows: tuple[str, ...] = ()
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
    margin: float = 0.0
    closed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = list(every_row(self.latent_dim))
        object.__setattr__(self, "rows", self.rows or tuple(known))
        for name in self.rows:
            checks.choice("a row", name, known)
        for name in self.closed:
            checks.choice("a row of closed", name, [each for each in MOVED if each in self.rows])
        if "VAE" not in self.rows or len(self.rows) < 2:
            raise ValueError("rows must have VAE, which the others are compared with, and at least one other")
        if self.latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2, for groups of latents; got {self.latent_dim}")
        convergence.accept_against(self.passes, self.against)
        checks.not_negative("margin", self.margin)
        checks.not_negative("start", self.start)
        checks.whole("start_passes", self.start_passes)
        if len(self.seeds) < 2 or not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    # Exact terms cost images × images × latents in each pass: of larger data sets a part is used.
    full = Plan(dataset=dataset, images=None if dataset == "digits" else 3000)
    if dataset in ("mnist", "glyphs"):
        # Wider networks learn so few images by heart, and their losses go on falling however long they are trained.
        full = full.changed(passes=300, against=0.5, hidden=(64,), latent_dim=10, lr=1e-2, start=0.1)
        full = full.changed(draws=2, largest_error=0.5, seeds=(0, 1, 2, 3, 4), again=5)
    if dataset == "mnist":  # with terms from draws, the VAE was ahead under a weight on information, by .03 nats
        full = full.changed(closed=tuple(MOVED))
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        passes = max(1, round(min(1.0, full.against) * full.passes) // 40)
        short = full.changed(images=1000, passes=passes, against=2.0, seeds=(0, 1), again=2, draws=1)
        return short.stretched("passes")
    if budget == "smoke":
        few = ("VAE", "β-VAE, β = 2", "weight 6 on TC")
        return full.changed(
            rows=few, closed=(), images=200, passes=1, against=2.0, seeds=(0, 1), again=2, draws=1, hidden=(16,)
        )
    return full


def every_row(latent_dim: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The objectives by the names that tables have: the name in `objectives.NAMED` and the settings of each."""
    exact = {"estimator": "exact"}
    halves = [list(range(latent_dim // 2)), list(range(latent_dim // 2, latent_dim))]
    return {
        "VAE": ("vae", {}),
        "β-VAE, β = 2": ("beta_vae", {"beta": 2.0}),
        "DIP-VAE I": ("dip_vae_i", {"off_diagonal": 10.0, "diagonal": 5.0} | exact),
        "DIP-VAE II": ("dip_vae_ii", {"off_diagonal": 10.0, "diagonal": 5.0} | exact),
        "InfoVAE, λ = 3": ("info_vae", {"alpha": 0.0, "lam": 3.0} | exact),
        "capacity, C = 4": ("capacity", {"gamma": 5.0, "capacity": 4.0}),
        "AnchorVAE, λ = .5": ("anchor_vae", {"anchors": [0], "lam": 0.5} | exact),
        "FactorVAE, γ = 10": ("factor_vae", {"gamma": 10.0} | exact),
        "HFVAE, β = 6, γ = 2": ("hfvae", {"groups": halves, "beta": 6.0, "gamma": 2.0} | exact),
        **{
            name: ("beta_tcvae", dict(zip(("alpha", "beta", "gamma"), each, strict=True)) | exact)
            for name, each in MOVED.items()
        },
    }


@dataclass(frozen=True)
class Weighed(objectives.Objective):
    """D + R + (a − 1) I(x; z) + (t − 1) TC + (m − 1) DW, with R in closed form: as I + TC + DW = R, D + a I + t TC + m DW.

    What is left of the terms is at the draws of z that D has too, with q(z) over all training images.
    """

    information: float
    correlation: float
    misfit: float

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        each, prior = model.posterior(x), model.prior()
        z = each.rsample()
        terms = objectives.Terms(-model.likelihood(z).log_prob(x), distributions.kl_divergence(each, prior))
        every = x if reference is None else reference
        codes = posterior.mean_and_std(model.posterior(every))
        alone = self.correlation != 1 or self.misfit != 1
        found = posterior.log_densities(z, *codes, -math.log(len(every)), latents=alone)
        total = terms.distortion + terms.rate + (self.information - 1) * (each.log_prob(z) - found.joint)
        if alone:
            latents = found.latents.sum(-1)
            total = total + (self.correlation - 1) * (found.joint - latents) + (self.misfit - 1) * (latents - prior.log_prob(z))
        return objectives.Loss(total, terms)


def run(plan: Plan, lab: Lab) -> Record:
    common = {
        name: plan.settings[name]
        for name in ("dataset", "binarize", "images", "rows", "closed", "latent_dim", "hidden", "batch", "lr", "draws")
    } | {"start": plan.start, "start_passes": plan.start_passes}
    frames: dict[int, Any] = {}
    for passes, seeds in convergence.trained(plan).items():
        cells = [{"objective": name, "passes": passes, "seeds": seeds} | common for name in plan.rows]
        frames[passes] = pd.DataFrame([row for found in lab.map(train, cells, f"{passes} passes") for row in found["rows"]])
    frame = frames[plan.passes]
    is_loss = frame["quantity"].str.startswith("loss under ")
    losses = frame[is_loss].assign(under=frame["quantity"].str.removeprefix("loss under "))
    table, crossed = convergence.cross_table(losses, plan.largest_error, plan.margin)
    return Record.of(
        __name__,
        plan,
        lab,
        frame.to_dict("records"),
        checks=[crossed, _compared(plan, frames)],
        said=_said(table),
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    rows: list[str],
    closed: list[str],
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    start: float,
    start_passes: int,
    objective: str,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one objective, one for each seed: their losses under every objective, and their terms."""
    ds = load(dataset, binarize, images)
    kinds = {
        name: Weighed(*MOVED[name]) if name in closed else objectives.NAMED[kind](**settings)
        for name, (kind, settings) in every_row(latent_dim).items()
        if name in rows
    }
    make = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    how: Any = {"seeds": seeds, "store": store}
    begin = begun(partial(models.VAE, **make), ds, start, schedule(ds, start_passes, batch, lr, device), how)
    runs = sweep(begin, ds, objectives=[kinds[objective]], config=schedule(ds, passes, batch, lr, device), **how)
    return {"rows": [row | {"objective": objective} for each in runs for row in measured(each, ds.train, kinds, batch, draws)]}


def begun(
    make: Callable[[], Any], ds: data.Dataset, start: float, config: training.TrainConfig, how: dict[str, Any]
) -> Callable[[], Any]:
    """What makes the models of a sweep: `make`, or if `start` is a β, copies of β-VAEs that are trained first, seed by seed."""
    if not start:
        return make
    first = cycle([each.model for each in sweep(make, ds, [start], config=config, **how)])
    return lambda: deepcopy(next(first))


def measured(run: Any, x: Tensor, kinds: dict[str, Any], batch: int, draws: int) -> list[dict[str, Any]]:
    """Rows of one model on training images: its losses under some objectives, its terms on some, and how far E z² is from 1."""
    values = {f"loss under {name}": loss(run.model, kind, x, batch, draws) for name, kind in kinds.items()}
    some = x[: max(APART, batch)]
    terms = estimators.decompose(run.model, some, n_samples=4)
    values |= {name: getattr(terms, name) for name in TERMS}
    values["second_moment"] = (estimators.moments(run.model, x).second_moment - 1).abs().max().item()
    place = {"seed": run.config.seed, "split": "train", "stderr": None}
    return [
        place | {"n": len(some if name in TERMS else x), "quantity": name, "value": value} for name, value in values.items()
    ]


def likelihood(ds: data.Dataset) -> dict[str, Any]:
    """The decoder's distribution for these data: Bernoulli on pixels of 0 and 1, else a narrow Gaussian."""
    return {} if ds.is_binary else {"likelihood": "gaussian", "sigma": 0.1 * ds.train.std().item()}


def schedule(ds: data.Dataset, passes: int, batch: int, lr: float, device: str) -> training.TrainConfig:
    """The training of these data: one cycle, at a third of the learning rate where the likelihood is a narrow density.

    Narrow densities of many dimensions have gradients that are larger still: a tenth from 257 on.
    """
    slower = 1 if ds.is_binary else 3 if math.prod(ds.shape) <= 256 else 10
    return training.TrainConfig(passes, batch, lr / slower, "one_cycle", device=device)


@torch.no_grad()
def loss(model: Any, objective: Any, x: Tensor, batch: int, draws: int) -> float:
    """The mean of an objective over batches as in training, in evaluation mode, nats; the same draws for every model."""
    model.eval()
    reference, total = x.to(model.prior().mean), []
    with training.seeded(0, reference.device):
        for _ in range(draws):
            for index in torch.randperm(len(x), device=reference.device).split(batch):
                value = objective(model, reference[index], step=10**9, reference=reference).total
                total.append((value.mean(-1) if value.dim() else value) * len(index))
    return torch.stack(total).sum().item() / (draws * len(x))


def _compared(plan: Plan, frames: dict[int, Any]) -> convergence.Check:
    """The other number of passes against what is claimed: changes to a term that are at least four times the largest error."""
    both: Any = pd.concat([effects(frame).assign(passes=passes) for passes, frame in frames.items()])
    return convergence.twice_as_long(both, plan.passes, plan.seeds[: plan.again], 4 * plan.largest_error)


def effects(frame: Any) -> Any:
    """What each objective changes in each term against the VAE of the same seed."""
    terms = frame[frame["quantity"].isin(TERMS)]
    return results.paired(terms, objective="VAE")


def _said(table: Any) -> str:
    closest = table.loc[table["value"].idxmin()]
    return (
        f"Under its own objective each model is better than every other; the closest is {closest['objective']} under "
        f"{closest['under']}, worse by {results.Estimate(closest['value'], closest['stderr'])} nats."
        if (table["value"] > 0).all()
        else f"In {int((table['value'] <= 0).sum())} of {len(table)} comparisons a model is no worse than the objective's own."
    )
