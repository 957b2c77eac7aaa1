"""β-VAEs along the whole curve of rate and distortion, on training and on test images, from few and from many images.

Two kinds of decoder. *Probabilities*: Bernoulli pixels of black and white images, with D in nats. *Densities*: Gaussian pixels
of grey images with one fixed σ, for which D is the squared error over 2σ² and a constant, and the water level is s = βσ².
Against these stands the linear VAE with as many latents, whose optimum is known from the covariance of the training images. A
network that contains linear maps may be below it in R + MSE/2s on these images, and above it only where training has failed.

What is measured on some images of a split depends on which these are. So two codes that need no training are measured on the
same images: the best linear VAE, and a code that says nothing, whose decoder knows the mean of the training images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from nbvae import analytic, checks, curves, data, estimators, models, objectives, results, training
from studies import convergence
from studies.failures import without_a_code
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "Which curve of rate and distortion do β-VAEs draw, on training and on test images, and from how many images?"
CHAPTER = "03_rate_distortion"
DATASETS = ("digits", "mnist", "glyphs", "patches")
KINDS = ("probabilities", "densities")
PICTURES = ("images", "rebuilt", "drawn")


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study; `binarize` is for probabilities, densities have grey values.

    - `kinds`: of the decoders, among "probabilities" and "densities".
    - `betas`: of the models with probabilities.
    - `levels`: water levels s of the models with densities, as shares of the largest eigenvalue of the data's covariance.
    - `sizes`: how many training images, at most; the last is the most. All sizes are trained for as many steps.
    - `passes`: over the training images of the last size.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `network`, `latent_dim`, `hidden`, `batch`: of the models and their training, under a one-cycle schedule.
    - `lrs`: the learning rates for probabilities and for densities.
    - `draws`: the number of z for each image, to measure D; `measured`: how many images of each split at most, None for all.
    - `pictured`: how many test images are kept with their reconstructions at each β, of probabilities where there are any.
    - `largest_error`: the most that the standard error of a difference of losses may be, in nats.
    """

    kinds: tuple[str, ...] = KINDS
    betas: tuple[float, ...] = (0.1, 0.2, 0.35, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    levels: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    sizes: tuple[int, ...] = (600, 1200)
    passes: int = 400
    against: float = 2.0
    again: int = 3
    network: str = "mlp"
    latent_dim: int = 16
    hidden: tuple[int, ...] = (128,)
    batch: int = 100
    lrs: tuple[float, ...] = (5e-3, 2e-3)
    draws: int = 4
    measured: int | None = None
    pictured: int = 3
    largest_error: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            checks.choice("a kind", kind, KINDS)
        for name in ("betas", "levels", "sizes"):
            each = getattr(self, name)
            if len(each) < (1 if name == "sizes" else 2) or list(each) != sorted(set(each)) or each[0] <= 0:
                raise ValueError(f"{name} must be numbers > 0, from the smallest to the largest; got {checks.short(each)}")
        if not self.kinds or self.levels[-1] >= 1:
            raise ValueError("there must be at least one kind, and levels must be below 1, where the code is empty")
        if len(self.lrs) != len(KINDS) or min(self.lrs) <= 0:
            raise ValueError("lrs must be two numbers > 0, for probabilities and for densities")
        convergence.accept_against(self.passes, self.against)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset != "digits":
        full = full.changed(images=10_000, sizes=(1000, 10_000), passes=50, latent_dim=32, hidden=(256,), lrs=(2e-3, 1e-3))
        full = full.changed(draws=1, measured=4000, largest_error=0.25)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(betas=(0.2, 0.6, 1.0, 2.0, 3.0, 5.0, 7.0), levels=(0.0125, 0.05, 0.1, 0.4))
        full = full.changed(passes=100, against=0.5)
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if dataset == "patches":
        full = full.changed(kinds=("densities",), largest_error=0.1)
    if dataset not in DATASETS:
        ds = full.data()
        count = len(ds.train)
        full = full.changed(kinds=KINDS[:1] if ds.is_binary else KINDS[1:], sizes=(max(1, count // 2), max(2, count)))
    few = {"betas": (0.1, 1.0, 4.0), "levels": (0.0125, 0.1, 0.4), "seeds": (0, 1), "again": 2, "draws": 1, "against": 2.0}
    most = min(full.sizes[-1], {"full": 10_000, "quick": 2000, "smoke": 200}[budget])
    sizes = {"sizes": (max(1, most // 2), most)}
    if budget == "quick":
        return full.changed(**few, **sizes, images=2000, passes=max(5, full.passes // 20), measured=1000).stretched("passes")
    if budget == "smoke":
        return full.changed(**few, **sizes, images=200, passes=1, hidden=(16,), latent_dim=4, measured=200)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    names = ("dataset", "network", "latent_dim", "hidden", "batch", "draws", "measured")
    common = {name: plan.settings[name] for name in names}
    first_kind = plan.kinds[0]
    most = min(plan.sizes[-1], len(plan.data().train))
    every = convergence.trained(plan)
    cells = [
        {
            "kind": kind,
            "binarize": plan.binarize if kind == KINDS[0] else None,
            "places": plan.betas if kind == KINDS[0] else plan.levels,
            "lr": plan.lrs[KINDS.index(kind)],
            "images": min(size, most),
            "most": most,
            "passes": round(passes * most / min(size, most)),
            "seeds": seeds,
            "pictured": plan.pictured if (kind, size, seeds) == (first_kind, plan.sizes[-1], plan.seeds) else 0,
        }
        | common
        for passes, seeds in every.items()
        for kind in plan.kinds
        for size in plan.sizes
    ]
    longest = [passes for passes in every for _ in plan.kinds for _ in plan.sizes]
    found = lab.map(train, cells, "curves")
    frame = pd.DataFrame(
        [row | {"passes": passes} for each, passes in zip(found, longest, strict=True) for row in each["rows"]]
    )
    first: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    known = yardsticks(plan, first)
    return Record.of(
        __name__,
        plan,
        lab,
        [*first.to_dict("records"), *known.to_dict("records")],
        checks=_checks(plan, frame, first, known),
        said=_said(pd.concat([first, known])),
        arrays={
            name: each[name]
            for each, passes in zip(found, longest, strict=True)
            for name in PICTURES
            if name in each and passes == plan.passes
        },
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int,
    most: int,
    network: str,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    draws: int,
    measured: int | None,
    kind: str,
    places: list[float],
    lr: float,
    passes: int,
    seeds: list[int],
    pictured: int,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The models of one kind and number of images, for each β or water level and each seed: what both splits say of them.

    `most` is how many images the water levels and the linear optimum are of. Of `pictured` test images, if that is not 0, there
    are `PICTURES`: the images; their reconstructions, from one draw of z, by the models of the first seed; and what these make
    of as many draws of z from the prior.
    """
    ds = load(dataset, binarize, images)
    make: dict[str, Any] = {"shape": ds.shape, "network": network, "latent_dim": latent_dim, "hidden": hidden}
    betas, linear, variance = places, None, 0.0
    if kind == "densities":
        linear = oracle(load(dataset, binarize, most), latent_dim)
        variance = places[0] * linear.eigenvalues[0]  # the smallest level is that of β = 1
        make |= {"likelihood": "gaussian", "sigma": variance**0.5}
        betas = [place / places[0] for place in places]
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    runs: list[Any] = sweep(
        lambda: models.VAE(**make), ds, betas, objective=objectives.BetaVAE, seeds=seeds, config=config, store=store
    )
    rows = []
    for each in runs:
        beta = each.objective.beta
        place: dict[str, Any] = {"objective": kind, "beta": beta, "seed": each.config.seed, "images": len(ds.train)}
        if kind == "densities":
            place["level"] = beta * variance
        for split, x in (("train", ds.train[:measured]), ("test", ds.test[:measured])):
            values = _on(each.model, x, beta, draws, kind)
            if linear is not None:
                rate, mse = linear.at_water_level(beta * variance)
                values["excess"] = values["rate"] - rate + (values["mse"] - mse) / (2 * beta * variance)
            rows += [
                place | {"split": split, "quantity": name, "value": value, "stderr": None, "n": len(x)}
                for name, value in values.items()
            ]
    first = [each.model for each in runs if each.config.seed == seeds[0]]
    return {"rows": rows} | (pictures(first, ds.test[:pictured]) if pictured else {})


@torch.no_grad()
def pictures(models: Sequence[Any], x: torch.Tensor) -> dict[str, np.ndarray]:
    """Images, what each model rebuilds them to, from the same noise, and what it makes of as many draws from its prior."""
    rebuilt, drawn = [], []
    for model in models:
        with training.seeded(0, model.prior().mean.device):
            means = [model.likelihood(model.posterior(x.to(model.prior().mean)).sample()).mean]
            means.append(model.likelihood(model.prior().sample((len(x),))).mean)
        for kept, mean in zip((rebuilt, drawn), means, strict=True):
            kept.append(mean.cpu().numpy().astype(np.float16))
    return {"images": x.numpy().astype(np.float16), "rebuilt": np.stack(rebuilt), "drawn": np.stack(drawn)}


def drawn_curve(frame: Any, kind: str, split: str, images: int | None = None) -> curves.RDCurve:
    """The curve of one kind on one split, with its seeds, from a record's frame; of the most training images by default."""
    some = frame[(frame["objective"] == kind) & (frame["split"] == split)]
    some = some[some["images"] == (some["images"].max() if images is None else images)]
    wide = some.pivot_table(index=["beta", "seed"], columns="quantity", values="value")
    points = [
        [
            curves.RDPoint(beta, each["rate"], each["distortion"], each.get("mse", math.nan), seed=int(seed))
            for (_, seed), each in rows.iterrows()
        ]
        for beta, rows in wide.groupby("beta")
    ]
    return curves.RDCurve([curves.RDPoint.mean_of(each) for each in points])


def yardsticks(plan: Plan, rows: Any) -> Any:
    """What two codes without training have on the images that the models of these rows are measured on.

    A row for each kind, size, β and split. Of quantity "no code": D of a decoder that is told nothing and knows the mean of the
    training images. Of quantity "linear", of densities and the most images: R + MSE/2s of the optimal linear VAE, less its
    value over the training images, which is what `excess` is measured from.
    """
    found = []
    for (kind, images), own in rows.groupby(["objective", "images"], sort=False):
        ds = load(plan.dataset, plan.binarize if kind == KINDS[0] else None, images)
        linear = oracle(ds, plan.latent_dim) if kind == KINDS[1] and images == rows["images"].max() else None
        mean = ds.train.flatten(1).double().mean(0)
        for split, every in (("train", ds.train), ("test", ds.test)):
            x = every[: plan.measured]
            apart = x.flatten(1).double() - mean
            moments = (apart.T @ apart / len(x)).numpy()
            silent = without_a_code(ds, x) if kind == KINDS[0] else None
            for beta, level in own.reindex(columns=["beta", "level"]).drop_duplicates().itertuples(index=False):
                place = {"objective": kind, "images": images, "beta": beta, "seed": plan.seeds[0], "split": split}
                place |= {"stderr": None, "n": len(x)} | ({"level": level} if kind == KINDS[1] else {})
                plain = np.trace(moments) * beta / (2 * level) if silent is None else silent
                found.append(place | {"quantity": "no code", "value": float(plain)})
                if linear is not None:
                    code = linear.solve(beta, level / beta)
                    rate, mse = analytic.linear_elbo_terms(moments, code.encoder, code.decoder, code.posterior_variance)
                    own_rate, own_mse = linear.at_water_level(level)
                    value = rate - own_rate + (mse - own_mse) / (2 * level)
                    found.append(place | {"quantity": "linear", "value": float(value)})
    return pd.DataFrame(found)


def _on(model: Any, x: Any, beta: float, draws: int, kind: str) -> dict[str, float]:
    """Rate, distortion, loss, latents in use and, of densities, the squared error, of one model on some images."""
    point = estimators.evaluate(model, x, beta, draws)
    found = {"rate": point.rate, "distortion": point.distortion, "loss": point.loss()}
    found["active"] = float(estimators.active_units(model, x).count)
    return found | ({"mse": point.mse} if kind == "densities" else {})


def oracle(ds: data.Dataset, latent_dim: int) -> analytic.LinearGaussian:
    """The optima of linear VAEs on the training examples."""
    covariance = torch.cov(ds.train.flatten(1).double().T, correction=0)
    return analytic.LinearGaussian(np.atleast_2d(covariance.numpy()), latent_dim)


def effects(frame: Any) -> Any:
    """What is claimed: D + βR on test images less that on training images; that of the fewest images less that of the most; and
    densities' excess over the linear VAE on the same images, from the most images. Of densities it is D/β + R, which is
    R + MSE/2s.
    """
    losses = frame[frame["quantity"] == "loss"]
    keys = [name for name in ("objective", "images", "beta", "seed") if name in losses]
    losses = losses.assign(value=losses["value"].where(losses["objective"] == KINDS[0], losses["value"] / losses["beta"]))
    both = losses.pivot_table(index=keys, columns="split", values="value").reset_index()
    parts = both.assign(value=both["test"] - both["train"], quantity="test less training")[[*keys, "value", "quantity"]]
    sizes = [parts[parts["images"] == size] for size in sorted(parts["images"].unique())]
    fewer = sizes[0].merge(sizes[-1], on=["objective", "beta", "seed"], suffixes=("", "_most"))
    fewer = fewer.assign(value=fewer["value"] - fewer["value_most"], quantity="the same, less that from the most images")
    excess = excesses(frame)
    excess = excess.assign(quantity="excess, " + excess["split"])[[*keys, "value", "quantity"]]
    found = pd.concat([parts, *([fewer[[*keys, "value", "quantity"]]] if len(sizes) > 1 else []), excess])
    where = found["objective"] + ", " + found["images"].astype(str) + " images, β = " + found["beta"].map("{:.3g}".format)
    return found.assign(objective=where)[["objective", "quantity", "seed", "value"]]


def excesses(frame: Any) -> Any:
    """R + MSE/2s of the models of the most images, less that of the best linear VAE of these, measured on the same images."""
    most, keys = frame[frame["images"] == frame["images"].max()], ["objective", "images", "beta", "split"]
    linear = most.loc[most["quantity"] == "linear", [*keys, "value"]]
    both = most[most["quantity"] == "excess"].merge(linear, on=keys, suffixes=("", "_linear"), validate="many_to_one")
    return both.assign(value=both["value"] - both["value_linear"]).drop(columns="value_linear")


def _checks(plan: Plan, frame: Any, first: Any, known: Any) -> list[convergence.Check]:
    """On training images each model must be the best under its own β; and the other number of passes."""
    found = []
    for kind, each in first[first["split"] == "train"].groupby("objective", sort=False):
        wide = each.pivot_table(index=["images", "beta", "seed"], columns="quantity", values="value")
        for images in wide.index.unique("images"):
            some = wide.loc[images]
            rows = [
                {"objective": f"β = {own:.3g}", "under": f"β = {under:.3g}", "seed": seed}
                | {"value": row["distortion"] + under * row["rate"]}
                for (own, seed), row in some.iterrows()
                for under in some.index.unique("beta")
            ]
            _, check = convergence.cross_table(pd.DataFrame(rows), plan.largest_error)
            found.append(convergence.Check(f"{check.name}: {kind}, {images} images", check.passed, check.found))
    both = pd.concat(
        [
            effects(pd.concat([each.drop(columns="passes"), known])).assign(passes=passes)
            for passes, each in frame.groupby("passes")
        ]
    )
    claims = convergence.claimed(both, plan.passes, plan.seeds[: plan.again], 4 * plan.largest_error)
    return [*found, convergence.same_side(claims, ["objective"])]


def _said(first: Any) -> str:
    claims, said = effects(first), []
    for kind in first["objective"].unique():
        mine = claims[claims["objective"].str.startswith(f"{kind}, ")]
        what = "D + βR" if kind == KINDS[0] else "D/β + R"
        worst, value = _furthest(mine[mine["quantity"] == "test less training"], 1)
        said.append(f"{what} on test images is above that on training images, most so by {value} nats ({worst})")
        if kind == KINDS[1]:
            least, value = _furthest(mine[mine["quantity"] == "excess, test"], -1)
            said.append(f"R + MSE/2s on test images is {value:+} nats from the best linear VAE's where it is lowest ({least})")
    return "; ".join(said) + ". Of these differences the side is claimed and not the size, which longer training changes."


def _furthest(claims: Any, side: int) -> tuple[str, results.Estimate]:
    """The claim whose mean is the largest (side 1) or the smallest (−1), and that mean."""
    name = (side * claims.groupby("objective")["value"].mean()).idxmax()
    return name, results.Estimate.over_runs(claims.loc[claims["objective"] == name, "value"].to_numpy())
