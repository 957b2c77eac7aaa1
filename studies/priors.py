"""Priors that are learned on the codes of one encoder: what each saves of the rate, and what its samples gain.

A β-VAE is trained, and not touched again. Densities r(z) of different kinds are fitted to the codes of its training images.
Under each the code of a test image costs E log q(z|x) − log r(z): the rate less KL(q(z) ‖ p(z)) and plus KL(q(z) ‖ r). What a
prior saves is what it knows of the aggregated posterior that N(0, I) does not. The decoder then decodes draws of each, and they
are held against the test images. For two of them, a second VAE and a diffusion, the rate is an upper bound, and the saving a
lower one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from nbvae import checks, estimators, metrics, models, results, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.plan import Plan as Common
from studies.plan import accept_labels, load
from studies.record import Record
from studies.samplers import compared
from studies.third_axis import Rescaled

QUESTION = "What do learned priors save of the rate of one encoder, and are samples better by as much?"
CHAPTER = "06_aggregated_posterior"
DATASETS = ("digits", "mnist", "glyphs")
PRIOR, SCALED, AGGREGATE = "N(0, I)", "N(0, I), rescaled", "aggregate"
FITTED = ("one Gaussian", "mixture", "VampPrior", "flow", "second VAE", "diffusion")
DISTANCES = ("frechet", "kernel")


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the β-VAEs.
    - `kinds`: what is fitted, among `FITTED`. N(0, I) is always there, also for latents that are shifted and scaled.
    - `passes`: over the training images.
    - `effort`: how many times the usual steps each density is fitted for. All is also done with twice the passes and the steps.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `fitted`: how many training images densities are fitted to, at most.
    - `components`: of the mixture of Gaussians; `inputs`: the pseudo-inputs of the VampPrior.
    - `drawn`: the number of images from each density.
    - `nearest`, `neighbours`: for coverage, how many images at most, and its k.
    - `largest_error`: the most that the standard error of a saving may be, in nats, unless it is at most a quarter of it.
    - `unclaimed`: what is measured and not claimed, neither its side of zero nor its size, by how its name begins, with
      quantity, density and β, as "saving VampPrior 0.05".
    """

    betas: tuple[float, ...] = (0.05, 0.2, 1.0)
    kinds: tuple[str, ...] = FITTED
    passes: int = 200
    effort: int = 1
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 64
    lr: float = 4e-3
    fitted: int = 1200
    components: int = 10
    inputs: int = 200
    drawn: int = 1200
    nearest: int = 2000
    neighbours: int = 5
    largest_error: float = 0.1
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.kinds:
            checks.choice("a kind", name, FITTED)
        for name in ("passes", "effort", "fitted", "components", "inputs", "drawn"):
            checks.whole(name, getattr(self, name))
        if not self.betas or min(self.betas) <= 0 or len(set(self.betas)) < len(self.betas):
            raise ValueError(f"betas must be different numbers > 0, at least one; got {checks.short(self.betas)}")
        if len(self.kinds) < 2 or len(set(self.kinds)) < len(self.kinds):
            raise ValueError("a rank correlation needs at least two kinds, all different")
        if len(self.seeds) < 2:
            raise ValueError("errors need at least two seeds")
        convergence.accept_unclaimed(self.unclaimed, ["saving", "more than", "rank correlation"])


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"images": 10_000, "betas": (0.3, 1.0, 4.0), "passes": 40, "hidden": (400, 400), "latent_dim": 16, "lr": 2e-3},
            **{"batch": 128, "fitted": 10_000, "inputs": 500, "drawn": 5000, "largest_error": 0.25},
        )
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    # Found to be needed: a longer fit of the VampPrior saves much more, and of those nearest to the mixture it moves the side.
    unclaimed = {
        "digits": ("saving VampPrior 0.05", "saving VampPrior 0.2", "more than mixture diffusion 0.05"),
        "mnist": (
            "saving VampPrior 0.3",
            "saving VampPrior 1",
            "more than mixture flow 0.3",
            "more than mixture diffusion 0.3",
        ),
        "glyphs": ("more than mixture VampPrior 1",),
    }
    full = full.changed(unclaimed=unclaimed.get(dataset, ()))
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "betas": full.betas[:1], "kinds": ("mixture", "VampPrior"), "drawn": 1200}
        return full.changed(passes=max(2, full.passes // 8), inputs=100, **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 300, "latent_dim": 3, "components": 2, "inputs": 20, "drawn": 200}
        return full.changed(
            **small, betas=full.betas[:1], kinds=("one Gaussian", "mixture"), passes=1, seeds=(0, 1), nearest=200
        )
    return full


def run(plan: Plan, lab: Lab) -> Record:
    labelled = load(plan.dataset, plan.binarize)
    accept_labels(labelled)
    metrics.classifier(labelled)  # later calls find it in the cache
    common = {
        name: value
        for name, value in plan.settings.items()
        if name not in ("betas", "passes", "effort", "seeds", "largest_error", "unclaimed")
    }
    cells = [
        {"beta": beta, "seed": seed, "passes": times * plan.passes, "effort": times * plan.effort} | common
        for times in (2, 1)  # the longest first
        for beta in plan.betas
        for seed in plan.seeds
    ]
    found = lab.map(price, cells, "priors")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(__name__, plan, lab, whole.to_dict("records"), checks=_checks(plan, frame), said=_said(plan, whole))


def price(
    dataset: str,
    binarize: str | None,
    images: int | None,
    kinds: list[str],
    beta: float,
    seed: int,
    passes: int,
    effort: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    fitted: int,
    components: int,
    inputs: int,
    drawn: int,
    nearest: int,
    neighbours: int,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """One β-VAE, and what each density makes of its codes: nats for a test image, and how near its images come to those."""
    ds = load(dataset, binarize, images)
    extract = metrics.classifier(load(dataset, binarize))
    make = partial(models.VAE, shape=ds.shape, latent_dim=latent_dim, hidden=hidden, **likelihood(ds))
    [trained] = sweep(make, ds, [beta], seeds=[seed], config=schedule(ds, passes, batch, lr, device), store=store)
    model: Any = trained.model
    with training.seeded(seed):
        x, test = ds.draw(ds.train)[:fitted], ds.draw(ds.test)
    made: dict[str, Any] = {PRIOR: samplers.Prior(model), SCALED: samplers.Prior(Rescaled(model, x))}
    made |= {kind: _density(kind, model, x, components, min(inputs, len(x) // 2), effort, seed) for kind in kinds}
    real, rows = extract(test), []
    for name, sampler in (made | {AGGREGATE: samplers.Aggregate(model, x)}).items():
        features = extract(sampler.sample(drawn, torch.Generator().manual_seed(seed)))
        found: dict[str, Estimate] = compared(features, real, neighbours, nearest, 0, seed)
        found["kernel"] = Estimate(metrics.kernel_distance(features, real).value, n=len(real))
        if isinstance(sampler, samplers.Density):
            found["rate"] = Estimate(sampler.rate(test, 5, seed), n=len(test))
        elif isinstance(sampler, samplers.Prior):
            found["rate"] = Estimate(estimators.evaluate(sampler.model, test, n_samples=1).rate, n=len(test))
        rows += [
            results.row_of(quantity, each, beta=beta, seed=seed, split="test", sampler=name) for quantity, each in found.items()
        ]
    point = estimators.evaluate(model, test, beta, n_samples=10)
    rows.append(results.row_of("distortion", Estimate(point.distortion, n=len(test)), beta=beta, seed=seed, split="test"))
    return {"rows": rows}


def _density(kind: str, model: Any, x: torch.Tensor, components: int, inputs: int, effort: int, seed: int) -> Any:
    """A density of one kind, fitted to the codes of x."""
    if kind in ("one Gaussian", "mixture"):
        return samplers.Mixture(model, x, n_components=1 if kind == "one Gaussian" else components, draws=5, seed=seed)
    if kind == "VampPrior":
        return samplers.VampPrior(model, x, n_components=inputs, steps=1000 * effort, seed=seed)
    if kind == "flow":
        return samplers.Flow(model, x, steps=2000 * effort, seed=seed)
    if kind == "diffusion":
        return samplers.Diffusion(model, x, steps=4000 * effort, seed=seed)
    return samplers.SecondStage(model, x, draws=5 * effort, seed=seed)


# What is claimed: sizes of savings, which of two densities saves more, and that images get better in the same order.


def savings(frame: Any) -> Any:
    """What each density saves of the rate under N(0, I), nats, for each β and seed (and number of passes, if there is one).

    For the rescaled N(0, I) and for what is learned.
    """
    rates = frame[frame["quantity"] == "rate"]
    keys = [name for name in ("beta", "seed", "passes") if name in rates]
    plain = rates[rates["sampler"] == PRIOR][[*keys, "value"]]
    both = rates[rates["sampler"] != PRIOR].merge(plain, on=keys, suffixes=("", "_plain"))
    return both.assign(value=both["value_plain"] - both["value"], quantity="saving")[[*keys, "sampler", "quantity", "value"]]


def agreement(frame: Any) -> Any:
    """Rank correlations, over the densities of one encoder, of what they save and how near their images come.

    - `frame`: a record's, or with a column `passes`.

    A row for each β, seed and distance, "frechet" or "kernel", in `sampler`: 1 where more saved always means nearer. N(0, I) is
    among the densities, with a saving of zero.
    """
    keys = [name for name in ("beta", "seed", "passes") if name in frame]
    wide: Any = frame[frame["quantity"].isin(["rate", *DISTANCES])].pivot_table(
        index=[*keys, "sampler"], columns="quantity", values="value"
    )
    rows = []
    for key, each in wide.dropna().groupby(keys, sort=False):
        place = dict(zip(keys, key, strict=True))
        for name in DISTANCES:
            found: Any = stats.spearmanr(each["rate"], each[name])
            rows.append(place | {"sampler": name, "quantity": "rank correlation", "value": float(found.statistic)})
    return pd.DataFrame(rows)


def apart(frame: Any) -> Any:
    """What each density saves more than the mixture, or than N(0, I) rescaled where there is none, in pairs."""
    each = savings(frame)
    keys = [name for name in ("beta", "seed", "passes") if name in each]
    base = "mixture" if (each["sampler"] == "mixture").any() else SCALED
    mine = each.loc[each["sampler"] == base, [*keys, "value"]]
    both = each[each["sampler"] != base].merge(mine, on=keys, suffixes=("", "_base"))
    return both.assign(value=both["value"] - both["value_base"], quantity=f"more than {base}").drop(columns="value_base")


def _checks(plan: Plan, frame: Any) -> list[convergence.Check]:
    """Twice the passes and steps: that each density saves, and which saves more."""
    keys = ["sampler", "beta"]
    every = pd.concat([savings(frame), apart(frame)], ignore_index=True)
    # One correlation for each seed: those of its βs are of one data set and say much the same.
    ranks = agreement(frame).groupby(["seed", "passes", "sampler", "quantity"], as_index=False)["value"].mean()
    every = pd.concat([every, ranks.assign(beta=0.0)], ignore_index=True)
    first = every[every["passes"] == plan.passes]
    claims = convergence.clear(_claimed(plan, first), ["quantity", *keys])[["quantity", *keys]].drop_duplicates()
    saved = _claimed(plan, savings(frame[frame["passes"] == plan.passes]))
    sizes = {
        f"{name}, β = {beta:g}": Estimate.over_runs(each["value"].to_numpy()) for (name, beta), each in saved.groupby(keys)
    }
    return [
        convergence.not_claimed(convergence.same_side(every.merge(claims), keys), plan.unclaimed),
        convergence.errors(sizes, plan.largest_error),
    ]


def _claimed(plan: Plan, rows: Any) -> Any:
    """The rows but those of what is not claimed."""
    named = rows.assign(at=rows["beta"].map("{:g}".format))
    return convergence.without(named, ["quantity", "sampler", "at"], plan.unclaimed)[rows.columns]


def _said(plan: Plan, whole: Any) -> str:
    saved, ranks = savings(whole), agreement(whole)
    told = []
    for beta in plan.betas:
        mine = saved[saved["beta"] == beta]
        each = {name: Estimate.over_runs(rows["value"].to_numpy()) for name, rows in mine.groupby("sampler", sort=False)}
        told.append(f"β = {beta:g}: " + ", ".join(f"{name} {value}" for name, value in each.items()))
    by_seed = ranks.groupby(["sampler", "seed"])["value"].mean()
    found = {name: Estimate.over_runs(np.asarray(by_seed[name])) for name in DISTANCES}
    return (
        f"Nats saved against N(0, I) on test images, {'; '.join(told)}. Rank correlation of what is saved with how near images "
        f"come: {found['frechet']} by Fréchet, {found['kernel']} by kernel distance."
    )
