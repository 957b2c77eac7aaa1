"""What a VAE fails at, how far it is below the likelihood, and whether the objective or the training did it.

*β-VAEs* from cold starts, from next to no price on the rate to a collapsed code: what images keep, how near they are to real
ones, and how far a tiny β is from an *autoencoder* without noise. *The gap* between log p(x) and the ELBO at β = 1, split into
its two parts. *Starts*: the same objective from a cold start and from a start whose β grows from a small one, with shallow
and with deep networks; where the second ends lower, training lost what the objective would have kept. *Noise* of the gradient
from one draw of the code, and what further draws are worth.

The collapsed code is a local minimum of D + βR exactly where β is above a threshold that follows from the data alone
(`threshold`). What is tried above and below it is given as shares of it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbvae import checks, data, estimators, models, objectives, posterior, results, training
from nbvae.objectives.protocol import measuring
from nbvae.results import Estimate
from studies import convergence
from studies.inside import STICKING, StickingTheLanding, bracket, gap_parts, gradient_noise
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "What does a VAE trained on the ELBO fail at, and is it the objective or the optimisation?"
CHAPTER = "01_elbo"
DATASETS = ("digits", "mnist", "glyphs")
AUTOENCODER = "autoencoder"
COMPARED = {2.0: "distortion, twice the passes", 0.5: "distortion, half the passes"}  # the autoencoder's, by `against`
_SHOWN = 10  # images that a page draws


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the β-VAEs, from small to large; 1, the VAE, must be among them.
    - `shares`: further βs, as shares of the data's threshold of collapse; at least one above 1.
    - `hidden`: units of the hidden layers; `deep`: those of the deep networks.
    - `grown_from`: the share of the threshold that β starts from where it grows. It grows over the first half of the steps.
    - `passes`: over the training images.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `latent_dim`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `draws`: the number of z for each image, to measure D; `measured`: how many images of each split at most, None for all.
    - `more_draws`: how many z an image has in a step, of the trainings with several.
    - `gap_images`: how many images of a split log p(x) is estimated for.
    - `gap_samples`: draws of importance sampling for each of them; `gap_steps`: temperatures of annealing, and steps for the
      best posterior.
    - `noise_batches`, `noise_draws`: how many batches the gradient is taken on, and how often on each.
    - `largest_error`: the most that the standard error of what is claimed may be, in nats.
    - `sides`: claims, by how their names begin, of which only the side is claimed, where it is clear, if they are at least four
      times the largest error.
    - `unclaimed`: what is measured and not claimed, by how its name begins.
    """

    betas: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    shares: tuple[float, ...] = (0.5, 0.7, 0.9, 1.2)
    hidden: tuple[int, ...] = (64,)
    deep: tuple[int, ...] = (64, 64, 64, 64)
    grown_from: float = 0.02
    passes: int = 400
    again: int = 5
    against: float = 2.0
    latent_dim: int = 8
    batch: int = 100
    lr: float = 1e-2
    draws: int = 4
    measured: int | None = None
    more_draws: int = 4
    gap_images: int = 200
    gap_samples: int = 2000
    gap_steps: int = 300
    noise_batches: int = 10
    noise_draws: int = 40
    largest_error: float = 0.2
    sides: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("betas", "shares"):
            each = getattr(self, name)
            if not each or list(each) != sorted(set(each)) or each[0] <= 0:
                raise ValueError(f"{name} must be numbers > 0, from the smallest to the largest; got {checks.short(each)}")
        if 1.0 not in self.betas or self.betas[0] >= 1:
            raise ValueError("betas must have 1, the VAE, and at least one that is smaller")
        if self.shares[-1] <= 1:
            raise ValueError("the last of shares must be above 1, where the collapsed code is a local minimum")
        if not 0 < self.grown_from < self.shares[0]:
            raise ValueError("grown_from must be above 0 and below all shares")
        convergence.accept_against(self.passes, self.against)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")
        for name in ("gap_images", "noise_batches", "noise_draws", "more_draws"):
            checks.whole(name, getattr(self, name), minimum=2)


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(images=5000, passes=240, latent_dim=10, hidden=(256,), deep=(256, 256, 256, 256), lr=4e-3, draws=2)
        full = full.changed(shares=(0.15, 0.4, 0.8, 1.2), measured=2000, gap_images=100, largest_error=0.5)
        full = full.changed(seeds=(0, 1, 2), again=3, against=0.5)
        full = full.changed(sides=("deep, grown less cold",))
    if dataset == "mnist":
        full = full.changed(unclaimed=("β = 0.001: D beyond the autoencoder",))
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    small = {"seeds": (0, 1), "again": 2, "against": 2.0, "draws": 1, "noise_batches": 4, "noise_draws": 10}
    if budget == "quick":
        few = {"images": 1000, "measured": 1000, "gap_images": 50, "gap_samples": 300, "gap_steps": 60}
        passes = max(1, round(min(1.0, full.against) * full.passes) // 25)
        return full.changed(**small, **few, passes=passes).stretched("passes")
    if budget == "smoke":
        few = {"images": 200, "measured": 200, "gap_images": 10, "gap_samples": 10, "gap_steps": 5, "latent_dim": 4}
        nets = {"hidden": (16,), "deep": (16, 16), "betas": (0.01, 1.0), "shares": (0.5, 1.2)}
        return full.changed(**small, **few, **nets, passes=2)
    return full


@dataclass(frozen=True)
class Grown(objectives.Objective):
    """D + b(t)·R, where b grows from `start` to `beta` over `steps` steps, by equal factors, and is `beta` from then on.

    >>> model, x = models.VAE((4,), 3), torch.ones(8, 4)
    >>> Grown(beta=4.0, start=0.5, steps=100)(model, x, step=100).total.shape
    torch.Size([])
    """

    beta: float
    start: float
    steps: int

    def at(self, step: int) -> float:
        """The weight of the rate after this number of steps."""
        return self.beta * (self.start / self.beta) ** max(0.0, 1.0 - step / self.steps)

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion.mean(-1) + self.at(step) * terms.rate.mean(-1), terms)


@dataclass(frozen=True)
class Autoencoder(objectives.Objective):
    """D at the posterior's mean: no noise in the code, and no price on it. The encoder's variances are not used."""

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        x = x.to(model.prior().mean)
        distortion = -model.likelihood(model.posterior(x).mean).log_prob(x)
        return objectives.Loss(distortion.mean(-1), objectives.Terms(distortion, torch.zeros_like(distortion)))


@dataclass(frozen=True)
class Draws(objectives.Objective):
    """D + R with D averaged over `count` draws of z for each image, instead of one."""

    count: int

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        each = [objectives.elbo_terms(model, x) for _ in range(self.count)]
        terms = objectives.Terms(torch.stack([one.distortion for one in each]).mean(0), each[0].rate)
        return objectives.Loss(terms.distortion.mean(-1) + terms.rate.mean(-1), terms)


def threshold(ds: data.Dataset) -> float:
    """The β from which the collapsed code is a local minimum of D + βR, on the training images.

    Near collapse D and R are quadratic in how far codes and decoder are from it, and for any network, however deep, the loss
    falls in some direction exactly if β is below the largest eigenvalue of the data's covariance, in units of the decoder's own
    variance: for black and white pixels that is the largest eigenvalue of their *correlations*, for a Gaussian decoder
    λ₁/σ². Pixels that never change are left out.
    """
    x = ds.draw(ds.train).flatten(1).double()
    x = x[:, x.std(0) > 0]
    scale = x.std(0, correction=0) if ds.is_binary else likelihood(ds)["sigma"]
    return torch.linalg.matrix_norm((x - x.mean(0)) / scale, 2).square().item() / len(x)


def accept(ds: data.Dataset) -> None:
    """Refuse data that this study can do nothing with, in one line, before anything is trained."""
    if not ds.train.std() > 0:
        raise ValueError("all values of the training examples are the same: there is nothing to learn")
    if len(ds.train) < 20 or len(ds.test) < 3:
        raise ValueError(f"at least 20 training and 3 test examples are needed, got {len(ds.train)} and {len(ds.test)}")


def without_a_code(ds: data.Dataset, x: Tensor) -> float:
    """D of the best decoder that is told nothing of the image, on examples x, nats: what a collapsed model has at any β."""
    mean, x = ds.draw(ds.train).double().mean(0), x.double()
    if ds.is_binary:
        mean = mean.clamp(1e-9, 1 - 1e-9)
        return -(torch.xlogy(x, mean) + torch.xlogy(1 - x, 1 - mean)).flatten(1).sum(1).mean().item()
    variance = likelihood(ds)["sigma"] ** 2
    return (0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))).flatten(1).sum(1).mean().item()


def run(plan: Plan, lab: Lab) -> Record:
    names = ("dataset", "binarize", "images", "latent_dim", "batch", "lr")
    common = {name: plan.settings[name] for name in names}
    measured = common | {name: plan.settings[name] for name in ("draws", "measured")}
    accept(plan.data())
    limit = threshold(plan.data())
    far = [share * limit for share in plan.shares]
    every = convergence.trained(plan)
    shallow, deep = list(plan.hidden), list(plan.deep)
    families = {
        "shallow": {"hidden": shallow, "betas": [*plan.betas, *far], "start": None},
        "shallow, grown": {"hidden": shallow, "betas": [1.0, *far], "start": plan.grown_from * limit},
        "deep": {"hidden": deep, "betas": far, "start": None},
        "deep, grown": {"hidden": deep, "betas": far, "start": plan.grown_from * limit},
    }
    cells = [
        measured | each | {"family": family, "passes": passes, "seeds": seeds}
        for passes, seeds in every.items()
        for family, each in families.items()
    ]
    found = lab.map(train, cells, "β-VAEs")
    variants = [
        common
        | {"hidden": shallow, "draws": plan.draws, "measured": plan.measured, "seeds": seeds}
        | {"variant": variant, "passes": passes, "trained": max(1, round(passes * share))}
        for passes, seeds in every.items()
        for variant, share in _variants(plan)
    ]
    found += lab.map(vary, variants, "variants")
    gap = {name: plan.settings[name] for name in ("gap_images", "gap_samples", "gap_steps", "noise_batches", "noise_draws")}
    inside = [
        common | gap | {"hidden": shallow, "passes": passes, "seed": seed} for passes, seeds in every.items() for seed in seeds
    ]
    found += lab.map(look_inside, inside, "the gap")
    frame = pd.DataFrame(
        [
            row | {"passes": cell["passes"]}
            for each, cell in zip(found, [*cells, *variants, *inside], strict=True)
            for row in each["rows"]
        ]
    )
    first: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    plain: Any = frame[(frame["passes"] != plan.passes) & (frame["objective"] == AUTOENCODER)].drop(columns="passes")
    other = plain.assign(quantity=COMPARED[plan.against]).to_dict("records")
    x = plan.data().train[: plan.measured]
    known = [("threshold", limit), ("distortion without a code", without_a_code(plan.data(), x))]
    place = {"objective": "data", "split": "train", "seed": plan.seeds[0], "stderr": None, "n": len(x)}
    numbers = {family: len(each["betas"]) for family, each in families.items()}
    pictures = {
        "x": "x",
        **{name: f"{name}, shallow, {plan.betas.index(1.0)}" for name in ("rebuilt", "pixels", "prior")},
        "collapsed": f"prior, shallow, {numbers['shallow'] - 1}",
        "cold": "rebuilt, deep, 0",
        "grown": "rebuilt, deep, grown, 0",
    }
    drawn = {name: value for each in found[len(families) : 2 * len(families)] for name, value in each.items()}
    return Record.of(
        __name__,
        plan,
        lab,
        [*first.to_dict("records"), *other, *(place | {"quantity": name, "value": value} for name, value in known)],
        checks=_checks(plan, frame, first),
        said=_said(plan, first, limit),
        arrays={name: drawn[key] for name, key in pictures.items()},
    )


def _variants(plan: Plan) -> list[tuple[str, float]]:
    """Names of the trainings that are compared with the VAE, and the share of its passes that each has."""
    many = f"{plan.more_draws} draws"
    return [(AUTOENCODER, 1), (many, 1), (f"{many}, passes in proportion", 1 / plan.more_draws), (STICKING, 1)]


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    measured: int | None,
    family: str,
    betas: list[float],
    start: float | None,
    passes: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """β-VAEs of one family, for each β and seed: what both splits say of them, and images of the first seed."""
    ds = load(dataset, binarize, images)
    config = schedule(ds, passes, batch, lr, device)
    half = max(1, passes * -(-len(ds.train) // batch) // 2)
    kinds = [objectives.BetaVAE(beta) if start is None else Grown(beta, min(start, beta), half) for beta in betas]
    make: dict[str, Any] = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    runs = sweep(lambda: models.VAE(**make), ds, objectives=kinds, seeds=seeds, config=config, store=store)
    rows, arrays = [], {}
    x, test = ds.draw(ds.train[:measured]), ds.test[:measured]
    scale = distances(test, x, test, ds.draw(ds.train[: len(test)]))
    for each in runs:
        place = {"objective": family, "beta": each.objective.beta, "seed": each.config.seed, "stderr": None}
        values = {("train", name): value for name, value in _point(each.model, x, each.objective.beta, draws).items()}
        if start is None and family == "shallow":
            point = _point(each.model, test, each.objective.beta, draws)
            values |= {("test", name): value for name, value in point.items()}
            values |= {("test", name): value for name, value in pictures(each.model, x, test, scale, each.config.seed).items()}
        rows += [
            place | {"split": split, "quantity": name, "value": value, "n": len(x) if split == "train" else len(test)}
            for (split, name), value in values.items()
        ]
        if each.config.seed == seeds[0]:
            arrays |= _drawn(each.model, test[:_SHOWN], f"{family}, {betas.index(each.objective.beta)}")
    return {"rows": rows, "x": test[:_SHOWN].numpy().astype(np.float16)} | arrays


def _point(model: Any, x: Tensor, beta: float, draws: int) -> dict[str, float]:
    """Rate, distortion at sampled codes and at their means, the loss, latents in use, and the size of noise and of means."""
    point = estimators.evaluate(model, x, beta, draws)
    mean, std = posterior.encode(model, x)
    return {
        "rate": point.rate,
        "distortion": point.distortion,
        "loss": point.loss(),
        "distortion at the mean": at_the_mean(model, x),
        "active": float(estimators.active_units(model, x).count),
        "noise": std.square().mean().sqrt().item(),
        "spread": mean.var(0).mean().sqrt().item(),
    }


@torch.no_grad()
def at_the_mean(model: Any, x: Tensor) -> float:
    """D at the posterior's mean instead of a draw, nats per image: what an autoencoder without noise has."""
    with measuring(model):
        return Autoencoder()(model, x).total.item()


def pictures(model: Any, train: Tensor, test: Tensor, scale: tuple[float, float], seed: int) -> dict[str, float]:
    """How reconstructions of test images and prior samples compare with images, as ratios of what real images have.

    - `scale`: what `distances` has for test images in the place of samples. Where that is zero there is no ratio.

    "kept": the variance over images, summed over pixels, of the decoder's means. "near": the squared distance to the nearest
    training image; "cover": that from a test image to the nearest of the samples. Black and white images are compared after a
    threshold, so that squared distances count pixels.
    """
    with torch.no_grad(), training.seeded(seed, model.prior().mean.device), measuring(model):
        like = model.prior().mean
        sets = {
            "reconstructions": model.likelihood(model.posterior(test.to(like)).sample()).mean.cpu(),
            "prior samples": model.likelihood(model.prior().sample((len(test),))).mean.cpu(),
        }
    whole = test.flatten(1).var(0).sum()
    binary = bool(((test == 0) | (test == 1)).all())
    found = {}
    for name, images in sets.items():
        if whole > 0:
            found[f"kept, {name}"] = (images.flatten(1).var(0).sum() / whole).item()
        shown = (images > 0.5).to(test) if binary else images
        both = zip(("near", "cover"), distances(shown, train, test, shown), scale, strict=True)
        found |= {f"{way}, {name}": value / of for way, value, of in both if of > 0}
    return found


def distances(images: Tensor, train: Tensor, test: Tensor, samples: Tensor) -> tuple[float, float]:
    """Mean squared distances: from `images` to the nearest of `train`, and from `test` to the nearest of `samples`."""
    pairs = ((images, train), (test, samples))
    return tuple(torch.cdist(a.flatten(1), b.flatten(1)).square().amin(1).mean().item() for a, b in pairs)  # type: ignore


@torch.no_grad()
def _drawn(model: Any, x: Tensor, name: str) -> dict[str, np.ndarray]:
    """Reconstructions of some images, pixels drawn from them, and prior samples of one model."""
    with training.seeded(0, model.prior().mean.device), measuring(model):
        rebuilt = model.likelihood(model.posterior(x.to(model.prior().mean)).sample())
        drawn = {"rebuilt": rebuilt.mean, "pixels": rebuilt.sample()}
        drawn["prior"] = model.likelihood(model.prior().sample((len(x),))).mean
    return {f"{key}, {name}": value.cpu().numpy().astype(np.float16) for key, value in drawn.items()}


def vary(
    dataset: str,
    binarize: str | None,
    images: int | None,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    draws: int,
    measured: int | None,
    variant: str,
    passes: int,
    trained: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """One variant of the training of a VAE: its D + R on training images, or the autoencoder's D, after `trained` passes."""
    ds = load(dataset, binarize, images)
    make: dict[str, Any] = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    kinds: dict[str, Any] = {AUTOENCODER: Autoencoder(), STICKING: StickingTheLanding()}
    kind = kinds.get(variant) or Draws(int(variant.split()[0]))
    runs = sweep(
        lambda: models.VAE(**make),
        ds,
        objectives=[kind],
        seeds=seeds,
        config=schedule(ds, trained, batch, lr, device),
        store=store,
    )
    x = ds.draw(ds.train[:measured])
    rows = []
    for each in runs:
        values = {"distortion": at_the_mean(each.model, x)}
        if variant != AUTOENCODER:
            values = {"loss": estimators.evaluate(each.model, x, 1.0, draws).loss()}
        place = {"objective": variant, "beta": 1.0, "seed": each.config.seed, "split": "train", "stderr": None, "n": len(x)}
        rows += [place | {"quantity": name, "value": value} for name, value in values.items()]
    return {"rows": rows}


def look_inside(
    dataset: str,
    binarize: str | None,
    images: int | None,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    passes: int,
    seed: int,
    gap_images: int,
    gap_samples: int,
    gap_steps: int,
    noise_batches: int,
    noise_draws: int,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """A VAE of one seed: its gap on both splits, and the noise of its gradient before and after training."""
    ds = load(dataset, binarize, images)
    make: dict[str, Any] = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    with training.seeded(seed):
        new: Any = models.VAE(**make)
    config = schedule(ds, passes, batch, lr, device)
    [done] = sweep(lambda: models.VAE(**make), ds, objectives=[objectives.VAE()], seeds=[seed], config=config, store=store)
    trained = done.model
    rows = []
    for split, x in (("train", ds.draw(ds.train[:gap_images])), ("test", ds.test[:gap_images])):
        parts = gap_parts(trained, x, gap_samples, gap_steps, seed)
        rows += [{"objective": "gap", "split": split} | results.row_of(name, each) for name, each in parts.items()]
    own, width = bracket(trained, gap_images, gap_samples, gap_steps, seed)
    rows += [
        {"objective": "gap", "split": "own images"} | results.row_of(*each) for each in (("IWAE", own), ("bracket", width))
    ]
    for stage, model in (("start", new.to(trained.prior().mean.device)), ("end", trained)):
        for (kind, name), value in gradient_noise(model, ds, batch, noise_batches, noise_draws, seed).items():
            rows.append({"objective": f"{kind}, {stage}", "split": "train"} | results.row_of(name, Estimate(value, math.nan)))
    return {"rows": [row | {"beta": 1.0, "seed": seed} for row in rows]}


def effects(frame: Any) -> Any:
    """What is claimed, by seed: objective (with its β), quantity and value.

    Of cold starts what images keep, how near they are, latents in use and the cost of noise; how far small βs are from the
    autoencoder; grown starts less cold ones; the gap and its parts; variants of the training less the VAE.
    """
    found = [_of_cold(frame), _beyond(frame), _starts(frame), _variants_less(frame)]
    gap = frame[(frame["objective"] == "gap") & frame["quantity"].isin(["gap", "amortisation", "approximation"])]
    found.append(gap.assign(objective="gap, " + gap["split"]))
    whole: Any = pd.concat([each[["objective", "quantity", "seed", "value"]] for each in found], ignore_index=True)
    return whole


def _named(beta: float) -> str:
    return f"β = {beta:.3g}"


def _of_cold(frame: Any) -> Any:
    """Of cold starts: what images keep, how near they are, latents in use, and the D that the noise of the code costs."""
    some = frame[frame["objective"] == "shallow"]
    some = some.assign(objective=some["beta"].map(_named))
    said = some["quantity"].str.startswith(("kept", "near", "cover")) & (some["split"] == "test")
    said &= some["beta"] > some["beta"].min()  # codes that cost next to nothing drift apart as long as they are trained
    said |= (some["quantity"] == "active") & (some["split"] == "train")
    at_mean, sampled = (
        some[(some["quantity"] == name) & (some["split"] == "train")].set_index(["beta", "seed"])["value"]
        for name in ("distortion at the mean", "distortion")
    )
    cost = (sampled - at_mean).dropna().rename("value").reset_index()
    return pd.concat([some[said], cost.assign(objective=cost["beta"].map(_named), quantity="cost of the noise")])


def _beyond(frame: Any) -> Any:
    """D of the two smallest βs less the autoencoder's, on training images."""
    some = frame[(frame["quantity"] == "distortion") & (frame["split"] == "train")]
    plain = some[some["objective"] == AUTOENCODER].set_index("seed")["value"]
    small = some[(some["objective"] == "shallow") & (some["beta"] < 1)]
    small = small[small["beta"].isin(sorted(small["beta"].unique())[:2])]
    value = small["value"] - small["seed"].map(plain)
    return small.assign(value=value, objective=small["beta"].map(_named), quantity="D beyond the autoencoder")


def _starts(frame: Any) -> Any:
    """D + βR of grown starts less that of cold ones of the same networks, β and seed, on training images."""
    some = frame[(frame["quantity"] == "loss") & (frame["split"] == "train")]
    found = []
    for family in ("shallow", "deep"):
        pair = [
            some[some["objective"] == name].set_index(["beta", "quantity", "seed"])["value"]
            for name in (f"{family}, grown", family)
        ]
        less = (pair[0] - pair[1]).dropna().rename("value").reset_index()
        where = f"{family}, grown less cold, " + less["beta"].map(_named)
        found.append(less.assign(objective=where))
    return pd.concat(found)


def _variants_less(frame: Any) -> Any:
    some = frame[(frame["quantity"] == "loss") & (frame["split"] == "train") & (frame["beta"] == 1)]
    plain = some[some["objective"] == "shallow"].set_index("seed")["value"]
    rest = some[some["objective"].str.contains("draws") | (some["objective"] == STICKING)]
    return rest.assign(value=rest["value"] - rest["seed"].map(plain), quantity="loss less the VAE's")


def smallest(quantity: str, largest_error: float) -> float:
    """The change that would not matter to what is claimed: in nats, in latents, or as a ratio to real images."""
    return 1.0 if quantity == "active" else 0.05 if quantity.startswith(("kept", "near", "cover")) else largest_error


def cross(frame: Any, family: str) -> pd.DataFrame:
    """Losses of the models of a family under each of its βs, for `convergence.cross_table`."""
    some = frame[(frame["objective"] == family) & (frame["split"] == "train")]
    wide = some.pivot_table(index=["beta", "seed"], columns="quantity", values="value")
    return pd.DataFrame(
        [
            {"objective": _named(own), "under": _named(under), "seed": seed, "value": row["distortion"] + under * row["rate"]}
            for (own, seed), row in wide.iterrows()
            for under in wide.index.unique("beta")
        ]
    )


def _checks(plan: Plan, frame: Any, first: Any) -> list[convergence.Check]:
    """β-VAEs are the best under their own β, also where they were grown; the other number of passes; errors."""
    found = []
    for family in ("shallow", "deep, grown"):
        _, check = convergence.cross_table(cross(first, family), plan.largest_error)
        found.append(convergence.Check(f"{check.name}: {family}", check.passed, check.found))
    both: Any = pd.concat(
        [effects(each.drop(columns="passes")).assign(passes=passes) for passes, each in frame.groupby("passes")]
    )
    both = both[~both["objective"].str.endswith("in proportion")]  # how much fewer passes lose depends on how many there are
    # The gap on test images goes on growing while training images are fitted: that it is larger there is claimed, its size not.
    drifts = (both["objective"] == "gap, test") & (both["quantity"] != "approximation")
    larger, both = _on_test(both), both[~drifts]
    sided, both, silent = _by_side(plan, both)
    by_side: Any = pd.concat([larger, sided])
    claims: dict[Any, Estimate] = {
        key: Estimate.over_runs(each["value"].to_numpy())
        for key, each in both[both["passes"] == plan.passes].groupby(["objective", "quantity"], sort=False)
    }
    allowed = {key: convergence.allowed(each, smallest(key[1], plan.largest_error)) for key, each in claims.items()}
    some = both[both["seed"].isin(plan.seeds[: plan.again])]
    some = some.assign(allowed=[allowed[key] for key in zip(some["objective"], some["quantity"], strict=True)])
    by_side = by_side[by_side["seed"].isin(plan.seeds[: plan.again])]
    sizes = convergence.twice(some, ["objective"])
    return [*found, convergence.not_claimed(sizes, silent), convergence.same_side(by_side, ["objective"])]


def _by_side(plan: Plan, both: Any) -> tuple[Any, Any, list[str]]:
    """The rows of claims by their side, those of claims by their size, and the names of what is not claimed."""
    both = both.reset_index(drop=True)
    names = both["objective"] + ": " + both["quantity"]
    mean = both["value"].where(both["passes"] == plan.passes).groupby(names).transform("mean").abs()
    large = names.str.startswith(plan.sides) & (mean >= 4 * plan.largest_error)
    silent = names.str.startswith(plan.unclaimed)
    clear = convergence.clear(both[large & (both["passes"] == plan.passes)].assign(name=names), ["name"])["name"].unique()
    told = large & names.isin(clear)
    left_out = silent | (large & ~told)
    return both[told & ~silent], both[~large & ~silent], list(names[left_out].unique())


def _on_test(both: Any) -> Any:
    """By how much the gap, and what the network is to blame for, is larger on test images, seed by seed."""
    parts = [both[both["objective"] == f"gap, {split}"] for split in ("test", "train")]
    apart = parts[0].merge(parts[1], on=["quantity", "passes", "seed"], suffixes=("", "_train"))
    apart = apart[apart["quantity"] != "approximation"]
    return apart.assign(objective="gap, test less train", value=apart["value"] - apart["value_train"])


def _said(plan: Plan, first: Any, limit: float) -> str:
    claims = results.over_seeds(effects(first), ["objective", "quantity"])
    if plan.sides:
        by_side, *_ = _by_side(plan, effects(first).assign(passes=plan.passes))
        mean = by_side.groupby("objective", sort=False)["value"].mean()
        sides = [f"{name} {'below' if value < 0 else 'above'} zero" for name, value in mean.items()]
        said = f"By their sides, and not by their sizes, are claimed: {'; '.join(sides) or 'none'}."
    else:
        starts = claims[[" grown less cold" in name and quantity == "loss" for name, quantity in claims.index]]
        least = min(starts.items(), key=lambda item: item[1].value)
        said = f"Under the same objective a grown start ends below a cold one by at most {-least[1]} nats ({least[0][0]})."
    parts = {name: claims["gap, test", name] for name in ("gap", "amortisation", "approximation")}
    return (
        f"The collapsed code is a local minimum from β = {limit:.3g} on. {said} The gap of the VAE is {parts['gap']} nats on "
        f"test images after these passes, {parts['amortisation']} of amortisation, {parts['approximation']} of approximation."
    )
