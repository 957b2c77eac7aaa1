"""What the plane of rate and distortion does not see: KL(q(z) ‖ p(z)), its parts, and what sampling from the prior costs.

Two parts. *Models*: β-VAEs, models of many β, weights on the two terms of the rate and published objectives, after few and
after many passes. *The pair*: two weightings D + a·I(x; z) + w·KL(q(z) ‖ p(z)) at one rate and one distortion. The weights of
the second are searched on seeds of their own, and both are measured on others.

The scale of a latent is free: shifting and scaling its codes, and undoing it in front of the decoder, changes neither D nor
I(x; z). So KL(q(z) ‖ p(z)) is split into `scale`, which the best shift and scale would save and which training has left there,
and the rest, which is shape and dependence. What is claimed is claimed of the models at their best scale.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.mixture import GaussianMixture
from torch import Tensor, distributions, nn

from nbvae import checks, estimators, metrics, models, objectives, posterior, results, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.objectives import likelihood, loss, schedule
from studies.plan import Plan as Common
from studies.plan import accept_labels, load
from studies.record import Record

QUESTION = "What do rate and distortion not see of a model, and what does sampling from its prior cost?"
CHAPTER = "06_aggregated_posterior"
DATASETS = ("digits", "mnist", "glyphs")
PLAIN, MANY, WEIGHTS, HEAVY, LIGHT = "β-VAE", "one model of many β", "two weights", "pair, heavy", "pair, light"


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the β-VAEs, and those that the models of many β are looked at with.
    - `on_information`, `on_marginal`: further weightings, a and w in turn.
    - `rows`: names of published objectives, among those of `published`; by default all.
    - `short`, `passes`: over the training images; some models are also trained for twice `passes`.
    - `few`: how many of the seeds the models have; the pair has all.
    - `latent_dim`, `hidden`: of the models; `pair_latent_dim`, `pair_hidden`: of the pair and of the further weightings.
    - `batch`, `lr`: of all trainings, under a one-cycle schedule.
    - `pair_passes`: for the pair; `pair_again`: how many of its seeds are trained for twice as many, with weights that are
      searched anew.
    - `heavy`: its first weighting, (a, w), w > a.
    - `grid_information`, `grid_marginal`: a and w, w < a, of the weightings that the search begins with: all combinations.
    - `search_seeds`, `search_steps`, `tolerance`: how many seeds the search has, how many weightings it tries at most, and the
      difference of rate and of distortion that it ends at, in nats.
    - `reference`: how many training images q(z) is made of where it is a mixture of their posteriors.
    - `draws`: the number of z for each image, for the terms.
    - `components`: of the mixture of Gaussians for the held-out bound.
    - `drawn`: the number of images drawn from prior and aggregate, for a Fréchet distance.
    - `moments_from`, `moments_within`: from which β on a β-VAE's second moments must be 1, and how nearly.
    - `largest_error`: the most that the standard error of a difference of losses may be, in nats.
    """

    betas: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 1.6, 3.2)
    on_information: tuple[float, ...] = (0.4, 0.6, 1.0, 1.0, 2.0, 2.0)
    on_marginal: tuple[float, ...] = (2.5, 0.28, 0.3, 3.0, 0.5, 6.0)
    rows: tuple[str, ...] = ()
    short: int = 24
    passes: int = 400
    few: int = 3
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128,)
    batch: int = 100
    lr: float = 1e-2
    pair_passes: int = 200
    pair_latent_dim: int = 4
    pair_hidden: tuple[int, ...] = (64,)
    pair_again: int = 6
    heavy: tuple[float, ...] = (1.0, 3.0)
    grid_information: tuple[float, ...] = (1.0, 1.3)
    grid_marginal: tuple[float, ...] = (0.3, 0.5)
    search_seeds: int = 12
    search_steps: int = 10
    tolerance: float = 0.05
    reference: int = 1200
    draws: int = 5
    components: int = 10
    drawn: int = 1200
    moments_from: float = 1.0
    moments_within: float = 0.2
    largest_error: float = 0.1
    seeds: tuple[int, ...] = tuple(range(12))

    def __post_init__(self) -> None:
        super().__post_init__()
        known = list(published(self.latent_dim))
        object.__setattr__(self, "rows", self.rows or tuple(known))
        for name in self.rows:
            checks.choice("a row", name, known)
        if len(self.on_information) != len(self.on_marginal):
            raise ValueError("on_information and on_marginal must have as many numbers, one of each for a weighting")
        if len(self.heavy) != 2 or len(self.betas) < 2 or len(self.on_information) < 2:
            raise ValueError("heavy must be two numbers, a and w, and there must be at least two betas and two weightings")
        if self.latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2, for groups of latents; got {self.latent_dim}")
        if not 2 <= self.few <= len(self.seeds) or not 2 <= self.pair_again <= len(self.seeds) or self.search_seeds < 2:
            raise ValueError("few, pair_again and search_seeds must be at least 2, the first two at most the number of seeds")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        # Weights at which the rate is below log N, but for the smaller βs: beyond it I(x; z) is log N whatever the weights are.
        full = full.changed(betas=(0.1, 0.5, 1.0, 3.0, 5.0, 8.0), moments_from=3.0, largest_error=0.25)
        full = full.changed(on_information=(2.0, 3.0, 4.0, 4.0, 6.0, 6.0), on_marginal=(8.0, 1.2, 1.2, 12.0, 2.0, 18.0))
        full = full.changed(images=10_000, short=3, passes=40, latent_dim=16, hidden=(256,), lr=2e-3, draws=2, drawn=5000)
        full = full.changed(pair_passes=40, pair_latent_dim=6, pair_hidden=(128,), pair_again=12, seeds=tuple(range(12)))
        full = full.changed(heavy=(4.0, 12.0), grid_information=(3.2, 4.2), grid_marginal=(1.2, 2.0), tolerance=0.15)
        full = full.changed(search_seeds=6, search_steps=8, reference=2000)
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        few = {"betas": (0.01, 0.3, 1.0), "on_information": (1.0, 1.0), "on_marginal": (3.0, 0.3), "rows": ("DIP-VAE II",)}
        small = {
            "few": 2,
            "seeds": (0, 1),
            "pair_again": 2,
            "search_seeds": 2,
            "search_steps": 2,
            "draws": 2,
            "drawn": 1000,
            "images": 1000,
        }
        part = 8
        if dataset not in DATASETS:  # a reader's file is run within a chapter, and nothing is claimed of it
            part, small = 20, small | {"search_steps": 1}
        return full.changed(
            **few, **small, short=max(1, full.short // 8), passes=full.passes // part, pair_passes=full.pair_passes // part
        ).stretched("short", "passes", "pair_passes")
    if budget == "smoke":
        few = {"betas": (0.1, 1.0), "on_information": (1.0, 1.0), "on_marginal": (3.0, 0.3), "rows": ("DIP-VAE II",)}
        small = {"few": 2, "seeds": (0, 1), "pair_again": 2, "search_seeds": 2, "search_steps": 1, "draws": 1, "drawn": 200}
        nets = {"hidden": (16,), "pair_hidden": (16,), "images": 300, "reference": 200, "components": 2}
        return full.changed(**few, **small, **nets, short=1, passes=2, pair_passes=2)
    return full


def published(latent_dim: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Published objectives by the names that tables have: the name in `objectives.NAMED` and the settings of each."""
    halves = [list(range(latent_dim // 2)), list(range(latent_dim // 2, latent_dim))]
    return {
        "DIP-VAE I": ("dip_vae_i", {"off_diagonal": 10.0, "diagonal": 5.0}),
        "DIP-VAE II": ("dip_vae_ii", {"off_diagonal": 10.0, "diagonal": 5.0}),
        "InfoVAE, λ = 30": ("info_vae", {"alpha": 0.0, "lam": 30.0}),
        "capacity, C = 3": ("capacity", {"gamma": 5.0, "capacity": 3.0}),
        "AnchorVAE, λ = .5": ("anchor_vae", {"anchors": [0], "lam": 0.5}),
        "Inf. Dropout, γ = 3": ("information_dropout", {"beta": 1.0, "gamma": 3.0}),
        "FactorVAE, γ = 10": ("factor_vae", {"gamma": 10.0}),
        "β-TCVAE, β = 6": ("beta_tcvae", {"beta": 6.0}),
        "HFVAE, β = 6, γ = 2": ("hfvae", {"groups": halves, "beta": 6.0, "gamma": 2.0}),
    }


def run(plan: Plan, lab: Lab) -> Record:
    labelled = load(plan.dataset, plan.binarize)
    accept_labels(labelled)
    metrics.classifier(labelled)  # later calls find it in the cache
    names = ("dataset", "binarize", "images", "batch", "lr", "reference", "draws")
    common = {name: plan.settings[name] for name in names}
    measured = common | {name: plan.settings[name] for name in ("components", "drawn")}
    large = {name: plan.settings[name] for name in ("latent_dim", "hidden")}
    small = {name: plan.settings[f"pair_{name}"] for name in large}

    few, betas = list(plan.seeds[: plan.few]), list(plan.betas)
    weightings = [list(each) for each in zip(plan.on_information, plan.on_marginal, strict=True)]
    families = [{"kind": PLAIN, "settings": betas} | large, {"kind": MANY, "settings": betas} | large]
    families += [{"kind": WEIGHTS, "settings": weightings} | small]
    rows = [{"kind": name, "settings": [name]} | large for name in plan.rows]
    cells = [
        measured | each | {"passes": passes, "seeds": few}
        for passes in (2 * plan.passes, plan.passes, plan.short)  # the longest first
        for each in (families if passes > plan.passes else families + rows)
    ]
    many = [row for each in lab.map(measure, cells, "many models") for row in each["rows"]]

    pair, losses, tries = [], [], {}
    near = [[a, w] for a in plan.grid_information for w in plan.grid_marginal]
    for passes, seeds in ((plan.pair_passes, plan.seeds), (2 * plan.pair_passes, plan.seeds[: plan.pair_again])):
        light, tries[f"search_{passes}"] = _searched(plan, lab, common | small | {"passes": passes}, near)
        both, spread = [list(plan.heavy), light], np.exp([[i, j] for i in (-0.15, 0.15) for j in (-0.25, 0.25)])
        near = (np.array(light) * spread).tolist()  # for the next search
        cells = [
            measured | small | {"kind": kind, "settings": [each], "passes": passes, "seeds": list(seeds), "under": both}
            for kind, each in zip((HEAVY, LIGHT), both, strict=True)
        ]
        found = lab.map(measure, cells, "the pair")
        pair += [row for each in found for row in each["rows"]]
        losses += [row for each in found for row in each["losses"]]
    own = {name: plan.settings[name] for name in ("dataset", "binarize", "drawn")}
    floor = [each["row"] for each in lab.map(trained_on, [own | {"seed": seed} for seed in few], "training images")]

    shown = [row | {"part": "models"} for row in many if row["passes"] <= plan.passes] + [
        row | {"part": "pair"} for row in pair
    ]
    tables = wide(pd.DataFrame(many)), wide(pd.DataFrame(pair))
    return Record.of(
        __name__,
        plan,
        lab,
        shown + floor,
        checks=_checks(plan, *tables, pd.DataFrame(losses)),
        said=_said(plan, *tables),
        arrays=tries,
    )


def _searched(plan: Plan, lab: Lab, common: dict[str, Any], near: list[list[float]]) -> tuple[list[float], np.ndarray]:
    """The light weights of the pair, and what was tried for them, on seeds of their own."""
    first = max(1000, max(plan.seeds) + 1)
    seeds = list(range(first, first + plan.search_seeds))
    halves = [seeds[::2], seeds[1::2]]

    def place(weightings: list[list[float]]) -> np.ndarray:
        cells = [common | {"settings": [each], "seeds": half} for each in weightings for half in halves]
        points = iter(lab.map(locate, cells, "search for the pair"))
        return np.array([np.concatenate([next(points)["points"] for _ in halves]).mean(0) for _ in weightings])

    return search(place, list(plan.heavy), near, plan.search_steps, plan.tolerance)


def search(
    place: Callable[[list[list[float]]], np.ndarray],
    heavy: list[float],
    grid: Sequence[Sequence[float]],
    steps: int,
    tolerance: float,
) -> tuple[list[float], np.ndarray]:
    """Weights (a, w) at which rate and distortion are those of the weights `heavy`.

    - `place`: rate and distortion of each of a list of weights, (n, 2), nats.
    - `grid`: at least three weights to begin with, not on a line. Both numbers are taken as linear functions of log a and
      log w; then there are secants (Broyden 1965).
    - `steps`: how many weights are tried at most, after the grid.
    - `tolerance`: the difference in both that ends the search.

    Returns the nearest of the weights that were tried, and a row (a, w, difference of rate, of distortion) for each of them.
    """
    target, *points = place([heavy, *map(list, grid)])
    centre = np.log(grid).mean(0)
    design = np.column_stack([np.ones(len(grid)), np.log(grid) - centre])
    middle, *slopes = np.linalg.lstsq(design, np.array(points), rcond=None)[0]
    slope = np.transpose(slopes)

    def towards(difference: np.ndarray, most: float) -> np.ndarray:
        return np.clip(np.linalg.lstsq(slope, -difference, rcond=None)[0], -most, most)

    logs, before, move = centre + towards(middle - target, 1.5), np.zeros(2), np.zeros(2)
    tried: list[tuple[float, float, float, float]] = []
    for _ in range(steps):
        weights = np.exp(logs).tolist()
        found = place([weights])[0] - target
        tried.append((*weights, *found.tolist()))
        if np.abs(found).max() <= tolerance:
            break
        if move.any() and np.abs(found).max() > 4 * tolerance:  # nearer it is noise that would be learned
            slope = slope + np.outer(found - before - slope @ move, move) / (move @ move)
        before, move = found, towards(found, 0.5)
        logs = logs + move
    a, w, *_ = min(tried, key=lambda each: max(map(abs, each[2:])))
    return [a, w], np.array(tried)


def locate(
    dataset: str,
    binarize: str | None,
    images: int | None,
    reference: int,
    draws: int,
    settings: list[list[float]],
    seeds: list[int],
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """Rate, at the best scale of the latents, and distortion of models of two weights, on training images."""
    ds = load(dataset, binarize, images)
    config = schedule(ds, passes, batch, lr, device)
    found = train(ds, WEIGHTS, settings, seeds, latent_dim, hidden, config, store)
    x = _drawn(ds)
    points = [estimators.evaluate(Rescaled(model, x), x[:reference], n_samples=draws) for _, model in found]
    return {"points": [[point.rate, point.distortion] for point in points]}


def measure(
    dataset: str,
    binarize: str | None,
    images: int | None,
    reference: int,
    draws: int,
    components: int,
    drawn: int,
    kind: str,
    settings: list[Any],
    seeds: list[int],
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    store: str | None,
    device: str,
    under: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Models of one kind, for each setting and seed: rows of the frame, and the losses of each under the weightings `under`."""
    ds = load(dataset, binarize, images)
    extract = metrics.classifier(load(dataset, binarize))
    config = schedule(ds, passes, batch, lr, device)
    rows, losses = [], []
    x, real = _drawn(ds), extract(ds.test)
    for place, model in train(ds, kind, settings, seeds, latent_dim, hidden, config, store):
        view = Rescaled(model, x)
        for split, quantity, estimate in (
            *_terms(model, view, x, reference, draws),
            *_on_test(model, ds.test, draws),
            *[("test", name, each) for name, each in marginal_kl_lower(model, x, ds.test, components).items()],
            *_distances(model, view, x[:reference], extract, real, drawn),
        ):
            rows.append(place | {"passes": passes, "split": split} | results.row_of(quantity, estimate))
        own = _label(place["on_information"], place["on_marginal"]) if under else ""
        for a, w in under:
            told = {"passes": passes, "objective": own, "under": _label(a, w), "seed": place["seed"]}
            losses.append(told | {"value": loss(view, weighting(a, w), x, batch, 4)})
    return {"rows": rows, "losses": losses}


def train(
    ds: Any,
    kind: str,
    settings: list[Any],
    seeds: list[int],
    latent_dim: int,
    hidden: list[int],
    config: training.TrainConfig,
    store: str | None,
) -> list[tuple[dict[str, Any], Any]]:
    """The models of one kind, each with its place in the frame."""
    make: Any = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    if kind == MANY:
        make |= {"beta_range": (0.6 * min(settings), 5 * max(settings))}
        runs: Any = sweep(
            partial(models.MultiBetaVAE, **make),
            ds,
            objectives=[objectives.MultiBeta()],
            seeds=seeds,
            config=config,
            store=store,
        )
        return [
            ({"objective": kind, "beta": beta, "seed": run.config.seed}, run.model.at(beta))
            for run in runs
            for beta in settings
        ]
    named = published(latent_dim)
    if kind == PLAIN:
        kinds, places = [objectives.BetaVAE(beta) for beta in settings], [{"beta": beta} for beta in settings]
    elif kind in named:
        name, options = named[kind]
        kinds, places = [objectives.NAMED[name](**options)], [{}]
    else:
        kinds, places = [weighting(*each) for each in settings], [{"on_information": a, "on_marginal": w} for a, w in settings]
    runs = sweep(partial(models.VAE, **make), ds, objectives=kinds, seeds=seeds, config=config, store=store)
    placed = [place for place in places for _ in seeds]
    return [
        ({"objective": kind} | place | {"seed": run.config.seed}, run.model) for place, run in zip(placed, runs, strict=True)
    ]


def weighting(a: float, w: float) -> objectives.BetaTCVAE:
    """D + a·I(x; z) + w·KL(q(z) ‖ p(z)), estimated from the batch."""
    return objectives.BetaTCVAE(a, w, w, "stratified")


class Rescaled(nn.Module):
    """A model whose codes are shifted and scaled to mean 0 and variance 1 on x, which its decoder undoes.

    D, I(x; z) and the total correlation are those of the model, and the second moments of the codes of x are 1: the rate is the
    least that a shift and a scale of each latent can give. For a network with linear heads and a linear first layer of the
    decoder that is another setting of its weights.

    - `model`: any with `posterior(x)`, `likelihood(z)` and a prior N(0, I).
    - `x`: the examples (N, *shape) whose codes are brought to that scale.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, model: Any, x: Tensor):
        super().__init__()
        self.model, like = model, model.prior().mean
        for name, value in zip(("centre", "scale"), _centre_and_scale(model, x), strict=True):
            self.register_buffer(name, value.to(like))

    def posterior(self, x: Tensor) -> distributions.Distribution:
        mean, std = posterior.mean_and_std(self.model.posterior(x))
        return distributions.Independent(
            distributions.Normal((mean - self.centre) / self.scale, std / self.scale, validate_args=False), 1
        )

    def likelihood(self, z: Tensor) -> distributions.Distribution:
        return self.model.likelihood(z * self.scale + self.centre)

    def prior(self) -> distributions.Distribution:
        return self.model.prior()


def _centre_and_scale(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent under the aggregated posterior of x, in float64."""
    moments = estimators.moments(model, x)
    return moments.mean, moments.covariance.diagonal().sqrt()


def marginal_kl_lower(
    model: Any, fit_on: Tensor, x: Tensor, components: int = 10, draws: int = 3, seed: int = 0
) -> dict[str, Estimate]:
    """A lower bound on KL(q(z) ‖ p(z)) of the population, at any rate, split into scale and the rest, nats.

    E log r(z)/p(z) over z ~ q(z|x) is KL(q(z) ‖ p(z)) − KL(q(z) ‖ r), for any density r that does not depend on the x that the
    mean is over. r is a mixture of `components` Gaussians with full covariances, fitted to `draws` codes of each of `fit_on`,
    on the scale where these have mean 0 and variance 1. `marginal_kl_held_out` is the bound; `…_scale` its part E log g(z)/p(z)
    with the Gaussian g of independent latents of that mean and variance; `…_rest` what the mixture adds, E log r(z)/g(z).
    Standard errors are over x.
    """
    (centre, scale), prior = _centre_and_scale(model, fit_on), posterior.mean_and_std(model.prior())
    with training.seeded(seed, prior[0].device):
        fitted, z = (_codes(model, each, draws) for each in (fit_on, x))
    mixture = GaussianMixture(components, random_state=seed).fit(((fitted - centre) / scale).flatten(0, 1).numpy())
    white = (z - centre) / scale
    log_r = torch.from_numpy(mixture.score_samples(white.flatten(0, 1).numpy())).unflatten(0, white.shape[:2])
    log_g = distributions.Normal(0.0, 1.0).log_prob(white).sum(-1)
    log_p = distributions.Normal(prior[0].cpu().double(), prior[1].cpu().double()).log_prob(z).sum(-1)
    parts = {"": log_r - scale.log().sum() - log_p, "_scale": log_g - scale.log().sum() - log_p, "_rest": log_r - log_g}
    return {f"marginal_kl_held_out{name}": Estimate.over_examples(each.mean(0)) for name, each in parts.items()}


def _codes(model: Any, x: Tensor, draws: int) -> Tensor:
    """Draws of z for each x, (draws, N, k), in float64."""
    mean, std = (each.double() for each in posterior.encode(model, x))
    return torch.normal(mean.expand(draws, *mean.shape), std.expand(draws, *std.shape)).cpu()


def _drawn(ds: Any) -> Tensor:
    """The training images as training sees them: the same draw of them for every model."""
    with training.seeded(0):
        return ds.draw(ds.train)


def _terms(model: Any, view: Rescaled, x: Tensor, reference: int, draws: int) -> list[tuple[str, str, Estimate]]:
    """The terms on training images. The rate and what it is made of are those of the model; without `scale`, of the view."""
    terms = estimators.decompose(view, x[:reference], n_samples=draws).estimates()
    rate = estimators.evaluate(model, x[:reference], n_samples=1).estimate("rate")
    saved = rate.value - terms["rate"].value
    moments = estimators.moments(model, x)
    found = {name: terms[name] for name in ("distortion", "mutual_information", "total_correlation")} | {"rate": rate}
    found |= {name: terms[name] + saved for name in ("marginal_kl", "marginal_kl_lower")}
    found |= {"scale": Estimate(saved, n=rate.n)}
    found |= {"second_moment": Estimate((moments.second_moment - 1).abs().max().item(), n=len(x))}
    found |= {"mean": Estimate(moments.mean.abs().max().item(), n=len(x))}
    return [("train", name, each) for name, each in found.items()]


def _on_test(model: Any, x: Tensor, draws: int) -> list[tuple[str, str, Estimate]]:
    point = estimators.evaluate(model, x, n_samples=draws)
    return [("test", name, point.estimate(name)) for name in ("rate", "distortion")]


def _distances(
    model: Any, view: Rescaled, x: Tensor, extract: Any, real: Tensor, drawn: int
) -> list[tuple[str, str, Estimate]]:
    """Fréchet distances to the test images of images from the prior, the prior at the best scale, and the aggregate."""
    kinds = {"prior": samplers.Prior(model), "prior_rescaled": samplers.Prior(view), "aggregate": samplers.Aggregate(model, x)}
    found = []
    for name, sampler in kinds.items():
        images = sampler.sample(drawn, torch.Generator().manual_seed(0))
        distance = metrics.frechet_distance(extract(images), real)
        found.append(("test", f"frechet_{name}", Estimate(distance.value, n=distance.n)))
    return found


def trained_on(dataset: str, binarize: str | None, drawn: int, seed: int, store: str | None, device: str) -> dict[str, Any]:
    """The Fréchet distance of training images, at most as many as are drawn from a model, to the test images."""
    ds = load(dataset, binarize)
    extract = metrics.classifier(ds)
    with training.seeded(seed):
        some = ds.draw(ds.train[torch.randperm(len(ds.train))[:drawn]])
    distance = metrics.frechet_distance(extract(some), extract(ds.test))
    row = {"objective": "training images", "seed": seed, "split": "test", "passes": 0, "part": "floor"}
    return {"row": row | results.row_of("frechet", Estimate(distance.value, n=distance.n))}


def _label(a: float, w: float) -> str:
    return f"a = {a:.3g}, w = {w:.3g}"


RANKED = ("marginal_kl_held_out_rest", "cost_rescaled")
SETTING = ["objective", "beta", "on_information", "on_marginal"]


def wide(rows: Any) -> Any:
    """One row for each model, a column for each quantity; and what follows from them, at the best scale of the latents.

    `rate_rescaled`; `shape`, the part of KL(q(z) ‖ p(z)) on the training images that is no scale; and what it costs to draw
    from the prior and not from q(z), `cost` and `cost_rescaled`, in Fréchet distance to the test images.
    """
    keys = [name for name in (*SETTING, "passes", "seed") if name in rows]
    names = rows["quantity"].where(
        rows["split"] == "train", rows["quantity"].replace({"rate": "rate_test", "distortion": "distortion_test"})
    )
    table = rows.assign(quantity=names).set_index([*keys, "quantity"])["value"].unstack("quantity").reset_index()
    return table.assign(
        rate_rescaled=table["rate"] - table["scale"],
        shape=table["marginal_kl"] - table["scale"],
        cost=table["frechet_prior"] - table["frechet_aggregate"],
        cost_rescaled=table["frechet_prior_rescaled"] - table["frechet_aggregate"],
    )


def rank_correlation(table: Any, first: str, second: str, seed: int = 0, resamplings: int = 1000) -> tuple[float, float, float]:
    """The rank correlation of two quantities over models, and its 95 % interval.

    Settings are resampled with all their seeds, and a model of many β with all its views, for these are not independent.
    """
    unit: Any = table[[name for name in (*SETTING, "seed") if name in table]].astype(object)
    many = unit["objective"] == MANY
    unit.loc[many, unit.columns.difference(["objective", "seed"])] = None
    unit.loc[~many, "seed"] = None
    units = table.groupby([unit[name] for name in unit], sort=False, dropna=False)  # a setting has no β, or no weights
    parts = [each[[first, second]].to_numpy() for _, each in units]
    picks = np.random.default_rng(seed).integers(len(parts), size=(resamplings, len(parts)))
    drawn = [np.concatenate([parts[i] for i in pick]) for pick in (range(len(parts)), *picks)]
    value, *others = (_spearman(*some.T) for some in drawn)
    low, high = np.nanquantile(others, [0.025, 0.975]).tolist()
    return value, low, high


def _spearman(a: Any, b: Any) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # a resampling of one setting, say
        return math.nan
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def between(table: Any) -> dict[str, Estimate]:
    """The light model of the pair less the heavy one, seed by seed."""
    heavy, light = (table[table["objective"] == name].set_index("seed").sort_index() for name in (HEAVY, LIGHT))
    quantities = [name for name in table.select_dtypes("number") if name not in ("seed", "passes", *SETTING)]
    return {name: Estimate.over_runs((light[name] - heavy[name]).to_numpy()) for name in quantities}


def _checks(plan: Plan, many: Any, pair: Any, losses: Any) -> list[convergence.Check]:
    plain = many[(many["objective"] == PLAIN) & (many["passes"] == plan.passes)]
    crossed = {"β-VAEs": _beta_losses(plain)}
    crossed |= {f"the pair, {passes} passes": each for passes, each in losses.groupby("passes")}
    found = [
        replace(check, name=f"{check.name}: {name}")
        for name, (_, check) in ((name, convergence.cross_table(each, plan.largest_error)) for name, each in crossed.items())
    ]
    held = plain[plain["beta"] >= plan.moments_from].groupby("beta")["second_moment"].max()
    if len(held):
        found.append(convergence.second_moments({f"β = {beta:g}": value for beta, value in held.items()}, plan.moments_within))
    found += [_one_point(each, passes) for passes, each in pair.groupby("passes")]
    claims = {"the pair": _claims_of_pair(pair, plan), "many models": _claims_of_models(many, plan)}
    found += [
        replace(check, name=f"{check.name}: {name}")
        for name, check in ((name, convergence.twice(each, ["objective"])) for name, each in claims.items())
    ]
    return found


def _beta_losses(table: Any) -> pd.DataFrame:
    """D + βR at the best scale of the latents, of each β-VAE under each β."""
    rows = [
        {"objective": own, "under": under, "seed": seed, "value": distortion + under * rate}
        for own, seed, distortion, rate in table[["beta", "seed", "distortion", "rate_rescaled"]].itertuples(index=False)
        for under in table["beta"].unique()
    ]
    return pd.DataFrame(rows)


def _one_point(table: Any, passes: Any) -> convergence.Check:
    """Whether rate, distortion and both together differ by less than a quarter of what is claimed to differ, in nats of rate.

    A nat of rate is worth as many nats of distortion as a model of the pair pays for one of information, the smaller number.
    Paid for in marginal KL alone, which is cheap for the light model, a nat of distortion would be worth more of it.
    """
    price = table["on_information"].min()
    paired = table.assign(both=table["rate_rescaled"] + table["distortion"] / price)
    apart = between(paired)
    allowed = abs(apart["shape"].value) / 4
    each = {"rate_rescaled": allowed, "distortion": price * allowed, "both": allowed}
    passed = all(abs(apart[name].value) + apart[name].stderr <= most for name, most in each.items())
    names = ("rates", "distortions", "both, in nats of rate,")
    found = ", ".join(
        f"{name} differ by {apart[key]:+}, {most:.2g} allowed" for (key, most), name in zip(each.items(), names, strict=True)
    )
    return convergence.Check(f"the pair has one rate and one distortion after {passes} passes", bool(passed), found)


def _claims_of_pair(table: Any, plan: Plan) -> Any:
    """By how much the pair differs, after both numbers of passes, each with weights of its own; a quarter would not matter."""
    some = table[table["seed"].isin(plan.seeds[: plan.pair_again])]
    rows = [
        {"objective": "the pair", "quantity": name, "passes": passes, "seed": seed, "value": value}
        for passes, each in some.groupby("passes")
        for name in ("shape", "marginal_kl_held_out_rest", "cost_rescaled")
        for seed, value in zip(sorted(each["seed"].unique()), between(each)[name].values, strict=True)
    ]
    return _allowed(rows, {name: each.value for name, each in between(table[table["passes"] == plan.pair_passes]).items()})


def _claims_of_models(table: Any, plan: Plan) -> Any:
    """What the smallest β has, after both numbers of passes; a quarter of it would not matter.

    The rank correlation is not among them: with twice the passes it moves by more than a quarter, so it is not claimed.
    """
    table = table[table["objective"].isin([PLAIN, MANY, WEIGHTS]) & (table["passes"] >= plan.passes)]
    smallest = table[(table["objective"] == PLAIN) & (table["beta"] == min(plan.betas))]
    rows = [
        {"objective": "β-VAE, smallest β", "quantity": name, "passes": passes, "seed": seed, "value": value}
        for name in ("marginal_kl_held_out_rest", "cost_rescaled")
        for passes, seed, value in smallest[["passes", "seed", name]].itertuples(index=False)
    ]
    first: Any = pd.DataFrame([row for row in rows if row["passes"] == plan.passes])
    return _allowed(rows, first.groupby("quantity")["value"].mean())


def _allowed(rows: list[dict[str, Any]], claimed: Any) -> pd.DataFrame:
    return pd.DataFrame([row | {"allowed": abs(claimed[row["quantity"]]) / 4} for row in rows])


def _said(plan: Plan, many: Any, pair: Any) -> str:
    table, pair = many[many["passes"] == plan.passes], pair[pair["passes"] == plan.pair_passes]
    apart = between(pair)
    cost = {
        name: Estimate.over_runs(pair.loc[pair["objective"] == name, "cost_rescaled"].to_numpy()) for name in (HEAVY, LIGHT)
    }
    light = pair[pair["objective"] == LIGHT].iloc[0]
    first = (
        f"Weights a = {light['on_information']:.3g}, w = {light['on_marginal']:.3g} and {_label(*plan.heavy)} lead to rates "
        f"that differ by {apart['rate_rescaled']:+} nats, distortions that differ by {apart['distortion']:+}, and "
        f"KL(q(z) ‖ p(z)) beyond scale that differs by {apart['shape']:+}; the prior costs {cost[LIGHT]} and {cost[HEAVY]} in "
        "Fréchet distance."
    )
    ranks = {name: rank_correlation(table, name, "cost_rescaled") for name in ("marginal_kl_held_out_rest", "rate_rescaled")}
    said = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in ranks.values()]
    count = len(table.groupby(SETTING, dropna=False))
    second = (
        f"Over {count} settings the rank correlation of KL(q(z) ‖ p(z)) beyond scale, bounded on held-out codes, with that "
        f"cost is {said[0]}, that of the rate {said[1]}: no check covers these."
    )
    some = table[(table["objective"] == PLAIN) & (table["beta"] == min(plan.betas))]
    names = ("marginal_kl_held_out", "marginal_kl_held_out_scale")
    names += ("frechet_prior", "frechet_prior_rescaled", "frechet_aggregate")
    at = {name: Estimate.over_runs(some[name].to_numpy()) for name in names}
    third = (
        f"β-VAEs of β = {min(plan.betas):g} have at least {at[names[0]]} nats of it, {at[names[1]]} of them scale, which is "
        f"free: without it prior samples go from {at[names[2]]} to {at[names[3]]}, the aggregate's are at {at[names[4]]}."
    )
    return f"{first} {second} {third}"
