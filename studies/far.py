"""Two models at one rate and one distortion, far beyond log N, where the sample's own mixture is no bound on KL(q(z) ‖ p(z)).

Here rates are at least twice log N, and the shape of the aggregated posterior is bounded by densities: one that is trained
beside each model, and a mixture of Gaussians and a flow that are fitted afterwards to codes of training images and measured on
codes of test images.

Both models minimise D + a·(I(x; z) + scale) + w·shape. The heavy one pays more for the shape of its aggregated posterior than
for information; the light one next to nothing, as a VAE does whose prior is learned beside it. The light one's a is searched
for, on seeds of its own, so that both have one rate; how near their distortions are is a check.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, distributions, nn

from nbvae import checks, estimators, metrics, models, objectives, results, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.plan import Plan as Common
from studies.plan import accept_labels, load
from studies.record import Record
from studies.samplers import compared
from studies.third_axis import Rescaled, marginal_kl_lower

QUESTION = "Do models of one rate and one distortion still differ far beyond log N, and what does it cost to sample from each?"
CHAPTER = "06_aggregated_posterior"
DATASETS = ("digits", "mnist", "glyphs")
HEAVY, LIGHT = "heavy", "light"
SHAPE, FLOW = "marginal_kl_held_out_rest", "marginal_kl_flow"
DISTANCES = ("frechet", "kernel", "coverage")
_SHOWN = 12  # images of each sampler


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `heavy`: weights a and w of the heavy model; `light`: w/a of the light one.
    - `grid`: values of a for the light one that the search measures; the rate is taken as a parabola in log a between them.
    - `search_seeds`: how many seeds the search has, of its own.
    - `beside`: the Gaussians of the density that is trained beside each model.
    - `passes`: over the training images; all is also done with twice as many, the search too.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `components`: of the mixture that is fitted afterwards; `steps`: of a flow that is fitted beside it, after `passes` alone.
    - `reference`, `draws`: how many training images the bounds by their own mixture are from, and the z for each.
    - `drawn`: the number of images from each sampler; `nearest`, `neighbours`: for coverage, how many at most, and its k.
    - `tolerance`: the most that the two may differ by in rate, and in distortion, in nats.
    """

    heavy: tuple[float, ...] = (0.2, 1.0)
    light: float = 0.1
    grid: tuple[float, ...] = (0.21, 0.23, 0.25, 0.27)
    search_seeds: int = 4
    beside: int = 10
    passes: int = 200
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128,)
    batch: int = 100
    lr: float = 4e-3
    components: int = 10
    steps: int = 2000
    reference: int = 1200
    draws: int = 5
    drawn: int = 1200
    nearest: int = 2000
    neighbours: int = 5
    tolerance: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.heavy) != 2 or min(self.heavy) <= 0:
            raise ValueError(f"heavy must be two numbers > 0, a and w; got {checks.short(self.heavy)}")
        if not 0 < self.light < self.heavy[1] / self.heavy[0]:
            raise ValueError(f"light must be above 0 and less than w/a of the heavy model; got {self.light:g}")
        if len(set(self.grid)) < 3 or min(self.grid) <= 0:
            raise ValueError(f"grid must be at least three different numbers > 0; got {checks.short(self.grid)}")
        if len(self.seeds) < 2 or self.search_seeds < 1:
            raise ValueError("errors need at least two seeds, and the search at least one")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"images": 10_000, "passes": 40, "latent_dim": 16, "hidden": (400,), "lr": 2e-3, "batch": 128, "draws": 2},
            **{"heavy": (0.3, 1.5), "grid": (0.3, 0.36, 0.43, 0.5), "search_seeds": 2, "reference": 2000, "drawn": 5000},
            **{"components": 20, "beside": 20, "tolerance": 0.5},
        )
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "search_seeds": 1, "draws": 1, "drawn": 1000, "components": 5, "steps": 300}
        return full.changed(passes=max(2, full.passes // 10), grid=full.grid[:3], **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 300, "reference": 200, "components": 2, "drawn": 200, "nearest": 200}
        return full.changed(**small, passes=1, seeds=(0, 1), search_seeds=1, latent_dim=3, beside=2, steps=5)
    return full


class Beside(nn.Module):
    """A density of z, a mixture of Gaussians with full covariances; a twentieth of it is N(0, I), for the first steps."""

    def __init__(self, k: int, components: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, k))
        self.log_diagonal = nn.Parameter(torch.zeros(components, k))  # of a root of the precision, and what is below it
        self.lower = nn.Parameter(torch.zeros(components, k, k))

    def forward(self, z: Tensor) -> Tensor:
        """log r(z) of z (..., k)."""
        root = self.lower.tril(-1) + torch.diag_embed(self.log_diagonal.exp())
        white = torch.einsum("cij,...cj->...ci", root, z.unsqueeze(-2) - self.mean)
        each = self.log_diagonal.sum(-1) - 0.5 * white.square().sum(-1)
        mixed = (self.weight.log_softmax(-1) + each).logsumexp(-1)
        return torch.logaddexp(mixed + math.log(0.95), math.log(0.05) - 0.5 * z.square().sum(-1)) - 0.5 * z.shape[
            -1
        ] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Shaped(objectives.Objective):
    """D + a·(I(x; z) + scale) + w·shape, the shape of q(z) by a density r that is trained beside the model.

    Shape is E log r(z)/g(z) with g the Gaussian of independent latents that has the batch's means and variances, which is
    KL(q(z) ‖ g) less what r misses. I(x; z) and the scale KL(g ‖ p) are what the rate has besides. With w = a it is a β-VAE.
    """

    information: float
    marginal: float
    components: int = 10
    lr: float = 3e-3

    def companion(self, latent_dim: int) -> nn.Module:
        return Beside(latent_dim, self.components)

    def companion_loss(self, companion: nn.Module, model: Any, x: Tensor, reference: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            z = model.posterior(x.to(model.prior().mean)).rsample()
        return -companion(z).mean(-1)

    def __call__(
        self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None, companion: Any = None
    ) -> objectives.Loss:
        x = x.to(model.prior().mean)
        each = model.posterior(x)
        z = each.rsample()
        terms = objectives.Terms(-model.likelihood(z).log_prob(x), distributions.kl_divergence(each, model.prior()))
        total = (terms.distortion + self.information * terms.rate).mean(-1)
        if companion is not None:
            entropy = 0.5 * (z.var(-2, correction=0).log() + math.log(2 * math.pi * math.e)).sum(-1)
            shape = companion(z).mean(-1) + entropy
            # Below 0 the density is worse than g: a heavy model would gain by codes that it has not yet followed.
            total = total + (self.marginal - self.information) * shape.clamp(min=0.0)
        return objectives.Loss(total, terms)


def run(plan: Plan, lab: Lab) -> Record:
    labelled = load(plan.dataset, plan.binarize)
    accept_labels(labelled)
    metrics.classifier(labelled)  # later calls find it in the cache
    names = ("dataset", "binarize", "images", "beside", "latent_dim", "hidden", "batch", "lr")
    trained = {name: plan.settings[name] for name in names}
    measured = {name: plan.settings[name] for name in ("components", "reference", "draws", "drawn", "nearest", "neighbours")}
    first = max(1000, max(plan.seeds) + 1)
    others = list(range(first, first + plan.search_seeds))
    tried = [list(plan.heavy)] + [[a, plan.light * a] for a in plan.grid]
    cells = [
        trained | {"weights": weights, "passes": times * plan.passes, "seeds": others} for times in (2, 1) for weights in tried
    ]
    rates = np.reshape([each["rate"] for each in lab.map(locate, cells, "search")], (2, len(tried)))
    light = {times: crossing(plan.grid, list(rates[2 - times][1:]), rates[2 - times][0]) for times in (2, 1)}
    cells = [
        trained | measured | {"weights": weights, "passes": times * plan.passes, "seed": seed, "name": name}
        for times in (2, 1)
        for name, weights in ((HEAVY, list(plan.heavy)), (LIGHT, [light[times], plan.light * light[times]]))
        for seed in plan.seeds
    ]
    found = lab.map(measure, cells, "pairs")
    kept = [cell for cell in cells if cell["passes"] == plan.passes]
    place = [trained | {name: cell[name] for name in ("weights", "passes", "seed", "name")} for cell in kept]
    flows = [cell | {"steps": plan.steps, "draws": plan.draws} for cell in place]
    mixed = [cell | {name: plan.settings[name] for name in ("components", "drawn", "nearest", "neighbours")} for cell in place]
    found += lab.map(by_flow, flows, "flows")
    instead = lab.map(from_mixture, mixed, "mixtures")
    drawn = {
        f"{cell['name']}, {way}": each[way]
        for each, cell in zip(instead, mixed, strict=True)
        if cell["seed"] == plan.seeds[0]
        for way in ("prior", "mixture")
    }
    found += instead
    cells += flows + mixed
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    images = len(plan.data().train)
    return Record.of(
        __name__,
        plan,
        lab,
        whole.to_dict("records"),
        checks=_checks(plan, frame, images),
        said=_said(whole, images),
        arrays=drawn,
    )


def crossing(grid: tuple[float, ...], rates: list[float], target: float) -> float:
    """The a at which the rate, a parabola in log a by least squares, is `target`: within the grid, or its nearest end.

    >>> round(crossing((0.1, 0.2, 0.4), [30.0, 25.0, 20.0], 25.0), 6)
    0.2
    """
    logs = np.log(grid)
    fitted: Any = np.polynomial.Polynomial.fit(logs, rates, 2)
    inside = np.linspace(logs.min(), logs.max(), 10_001)
    return float(np.exp(inside[np.abs(fitted(inside) - target).argmin()]))


def _trained(
    ds: Any,
    weights: list[float],
    seeds: list[int],
    beside: int,
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    store: str | None,
    device: str,
) -> list[Any]:
    make = partial(models.VAE, shape=ds.shape, latent_dim=latent_dim, hidden=hidden, **likelihood(ds))
    config = schedule(ds, passes, batch, lr, device)
    kind: Any = Shaped(*weights, components=beside)
    return [each.model for each in sweep(make, ds, objectives=[kind], seeds=seeds, config=config, store=store)]


def _at_best_scale(ds: Any, model: Any) -> tuple[Rescaled, Tensor]:
    with training.seeded(0):  # the training images as training sees them
        x = ds.draw(ds.train)
    return Rescaled(model, x), x


def _one(
    dataset: str, binarize: str | None, images: int | None, weights: list[float], seed: int, **settings: Any
) -> tuple[Any, Rescaled, Tensor]:
    """The data, one model at its best scale, and the training images."""
    ds = load(dataset, binarize, images)
    (model,) = _trained(ds, weights, [seed], **settings)
    return ds, *_at_best_scale(ds, model)


def _rows(name: str, weights: list[float], seed: int, found: list[tuple[str, str | None, str, Estimate]]) -> dict[str, Any]:
    """Rows of what was found of one model: split, sampler, quantity and value."""
    place = {"objective": name, "seed": seed, "on_information": weights[0], "on_marginal": weights[1]}
    return {"rows": [results.row_of(quantity, each, **place, split=split, sampler=way) for split, way, quantity, each in found]}


def locate(
    dataset: str, binarize: str | None, images: int | None, weights: list[float], seeds: list[int], **settings: Any
) -> dict[str, Any]:
    """The rate of models of two weights at the best scale of their latents, on training images, a mean over seeds."""
    ds = load(dataset, binarize, images)
    found = [_at_best_scale(ds, model) for model in _trained(ds, weights, seeds, **settings)]
    return {"rate": float(np.mean([estimators.evaluate(view, x, n_samples=1).rate for view, x in found]))}


def measure(
    weights: list[float],
    seed: int,
    name: str,
    components: int,
    reference: int,
    draws: int,
    drawn: int,
    nearest: int,
    neighbours: int,
    **settings: Any,
) -> dict[str, Any]:
    """One model of the pair: its terms, bounds on KL(q(z) ‖ p(z)), and how near samples of its prior are to decoded codes."""
    ds, view, x = _one(weights=weights, seed=seed, **settings)
    found: list[tuple[str, str | None, str, Estimate]] = []
    for split, some in (("train", x), ("test", ds.test)):
        point = estimators.evaluate(view, some, n_samples=draws)
        found += [(split, None, each, point.estimate(each)) for each in ("rate", "distortion")]
    own = estimators.decompose(view, x[:reference], n_samples=draws).estimates()
    found += [("train", None, each, own[each]) for each in ("marginal_kl", "marginal_kl_lower", "mutual_information")]
    found += [("test", None, each, value) for each, value in marginal_kl_lower(view, x, ds.test, components).items()]
    extract = metrics.classifier(load(settings["dataset"], settings["binarize"]))
    ways = {"prior": samplers.Prior(view), "aggregate": samplers.Aggregate(view, x)}
    near = _near(view, ds.test, extract, ways, drawn, nearest, neighbours, seed)
    found += [("test", way, each, value) for way, each, value in near]
    return _rows(name, weights, seed, found)


def _near(
    view: Any, test: Tensor, extract: Any, ways: dict[str, Any], drawn: int, nearest: int, neighbours: int, seed: int
) -> list[tuple[str, str, Estimate]]:
    """How near images of each sampler are to decoded codes of the test images."""
    generator, found = torch.Generator, []
    held = extract(samplers.Aggregate(view, test).sample(drawn, generator().manual_seed(seed + 1)))
    for way, sampler in ways.items():
        features = extract(sampler.sample(drawn, generator().manual_seed(seed)))
        near: dict[str, Estimate] = compared(features, held, neighbours, nearest, 0, seed)
        near["kernel"] = Estimate(metrics.kernel_distance(features, held).value, n=len(held))
        found += [(way, each, value) for each, value in near.items()]
    return found


def by_flow(
    weights: list[float],
    seed: int,
    name: str,
    steps: int,
    draws: int,
    **settings: Any,
) -> dict[str, Any]:
    """The bound of `marginal_kl_lower` at the best scale by another density, a flow, as a row."""
    ds, view, x = _one(weights=weights, seed=seed, **settings)
    rate = estimators.evaluate(view, ds.test, n_samples=1).rate
    saved = Estimate(rate - samplers.Flow(view, x, steps=steps, seed=seed).rate(ds.test, draws, seed), n=len(ds.test))
    return _rows(name, weights, seed, [("test", None, FLOW, saved)])


def from_mixture(
    weights: list[float],
    seed: int,
    name: str,
    components: int,
    drawn: int,
    nearest: int,
    neighbours: int,
    **settings: Any,
) -> dict[str, Any]:
    """How near images are to decoded codes of test images if z is drawn from a mixture fitted to codes of training images.

    And some images to look at, of it and of the prior, both as (shown, *shape).
    """
    ds, view, x = _one(weights=weights, seed=seed, **settings)
    extract = metrics.classifier(load(settings["dataset"], settings["binarize"]))
    ways: dict[str, Any] = {"mixture": samplers.Mixture(view, x, components, seed=seed)}
    near = _near(view, ds.test, extract, ways, drawn, nearest, neighbours, seed)
    ways["prior"] = samplers.Prior(view)
    some = {way: each.sample(_SHOWN, torch.Generator().manual_seed(seed)) for way, each in ways.items()}
    rows = _rows(name, weights, seed, [("test", *each) for each in near])
    return rows | {way: each.cpu().numpy().astype(np.float16) for way, each in some.items()}


# What is claimed: one rate and one distortion, and that shape and the cost of sampling differ.


def by_model(frame: Any) -> Any:
    """One row for each model and quantity, with what sampling from its prior costs among them.

    - `frame`: a record's, or with a column `passes`.

    Of the test images are "test rate", "test distortion" and the held-out bounds, the other nats of training images; all at the
    best scale. "frechet cost" and its like are by how much samples of the prior are farther from decoded codes of test images
    than decoded codes of training images are; of coverage, what they lack. "… cost of a mixture" is that of draws of a mixture
    of Gaussians fitted to codes of training images, in the place of the prior.
    """
    keys = [name for name in ("objective", "seed", "passes") if name in frame]
    train = frame[(frame["split"] == "train") & frame["sampler"].isna()]
    test = frame[(frame["split"] == "test") & frame["sampler"].isna()]
    test = test.assign(quantity=test["quantity"].replace({"rate": "test rate", "distortion": "test distortion"}))
    near = frame[frame["quantity"].isin(DISTANCES) & frame["sampler"].notna()]
    own, costs = near[near["sampler"] == "aggregate"], []
    for way, name in (("prior", "cost"), ("mixture", "cost of a mixture")):
        both = near[near["sampler"] == way].merge(own, on=[*keys, "quantity"], suffixes=("", "_own"))
        sign = np.where(both["quantity"] == "coverage", -1.0, 1.0)
        costs.append(both.assign(value=sign * (both["value"] - both["value_own"]), quantity=both["quantity"] + f" {name}"))
    return pd.concat([each[[*keys, "quantity", "value"]] for each in (train, test, *costs)], ignore_index=True)


def differences(frame: Any) -> Any:
    """What the light model has more than the heavy one, in pairs of seeds, by quantity, as `by_model` has them."""
    return results.paired(by_model(frame), objective=HEAVY).drop(columns="objective")


def _checks(plan: Plan, frame: Any, images: int) -> list[convergence.Check]:
    apart = differences(frame)
    found = []
    for passes, each in apart.groupby("passes"):
        means = {name: Estimate.over_runs(rows["value"].to_numpy()) for name, rows in each.groupby("quantity")}
        near = all(abs(means[name].value) <= plan.tolerance for name in ("rate", "distortion"))
        told = f"they differ by {means['rate']:+} and {means['distortion']:+} nats, {plan.tolerance:g} allowed"
        found.append(convergence.Check(f"the pair has one rate and one distortion after {passes} passes", near, told))
        for name, density in ((SHAPE, "a mixture"), (FLOW, "a flow")):
            if name in means:
                clear = means[name].value > 5 * means[name].stderr
                told = f"KL(q(z) ‖ p(z)) beyond scale differs by {means[name]:+} nats on codes of test images"
                check = f"the light one has more shape, by five errors and {density}, after {passes} passes"
                found.append(convergence.Check(check, clear, told))
    rates = frame[(frame["quantity"] == "rate") & (frame["split"] == "train")]
    lowest, twice = rates["value"].min(), 2 * math.log(images)
    found.append(
        convergence.Check(
            "every rate is at least twice log N",
            bool(lowest >= twice),
            f"the least is {lowest:.3g}, 2 log N is {twice:.3g} nats",
        )
    )
    costs = [f"{name} cost" for name in DISTANCES]
    some = apart[apart["quantity"].isin([SHAPE, *costs])]
    claims = convergence.clear(some[some["passes"] == plan.passes], ["quantity"])["quantity"].unique()
    side = convergence.same_side(some[some["quantity"].isin(claims)].assign(objective=LIGHT), ["objective"])
    return [*found, replace(side, name=f"{side.name}: the pair")]


def _said(whole: Any, images: int) -> str:
    means = {name: Estimate.over_runs(rows["value"].to_numpy()) for name, rows in differences(whole).groupby("quantity")}
    rates = whole[(whole["quantity"] == "rate") & (whole["split"] == "train") & (whole["objective"] == HEAVY)]["value"]
    return (
        f"At a rate of {Estimate.over_runs(rates.to_numpy())} nats, log N being {math.log(images):.3g}, the light model "
        f"differs by {means['rate']:+} in rate and {means['distortion']:+} in distortion, and its KL(q(z) ‖ p(z)) beyond scale "
        f"by {means[SHAPE]:+} nats by the bound of held-out codes, {means['marginal_kl']:+} by that of the sample's mixture; "
        f"sampling from the prior costs it {means['frechet cost']:+} more in Fréchet distance."
    )
