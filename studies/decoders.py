"""Decoders without their encoders: what each would reach with the best encoder, for its own β and for others.

For a decoder p(x|z) and a prior, and over all encoders, D + βR is least at q(z|x) ∝ p(z) p(x|z)^(1/β). There it is minus β
times the logarithm of ∫ p(z) p(x|z)^(1/β) dz, which `estimators.decoder_curve` estimates by annealing, for all β in one run.
What a VAE has above that on the same images is its *encoder's* doing: one network for all images, and Gaussians. In expectation
the estimate is too high, and so what the encoder lacks too low.

The VAEs are those of the study of the curve with probabilities: the same settings, and so the same stored trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from nbvae import checks, curves, estimators, models, objectives, results, training
from studies import convergence, curve
from studies.lab import Lab, sweep
from studies.objectives import likelihood
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "How much of a VAE's D + βR is its encoder's fault, and how far does one decoder serve other β?"
CHAPTER = "03_rate_distortion"
DATASETS = ("digits", "mnist", "glyphs")
OWN, BEST = "VAE", "decoder with the best encoder"
LACKS, NEW, OTHER = "what the encoder lacks", "the same, test less training", "less the VAE of that β"
SPLITS = ("train", "test")
_LARGE = 10  # largest errors that a decoder at another's β must differ by, to be claimed


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the VAEs, and where each decoder is measured.
    - `decoders`: the βs, among these, of the VAEs whose decoders are measured.
    - `passes`: over the training images; some seeds are also trained for twice as many.
    - `again`: how many of the seeds.
    - `network`, `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `measured`: how many images of each split all is measured on; `draws`: of z for each of them, to measure a VAE's D.
    - `chains`: for each image; `steps`: temperatures from the prior to β = 1, and again for each factor of ten below it, also
      twice as many; `leapfrogs`: steps of a move. With many steps a move in a prior ends where it began.
    - `largest_error`: the most that the standard error of what is claimed may be, in nats, and the most that it may be off,
      unless that is at most a quarter of it.
    - `unclaimed`: decoders at another's β, by how their names begin, of which nothing is claimed.
    """

    betas: tuple[float, ...] = (0.2, 0.35, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    decoders: tuple[float, ...] = (0.2, 1.0, 3.0)
    passes: int = 400
    again: int = 5
    network: str = "mlp"
    latent_dim: int = 16
    hidden: tuple[int, ...] = (128,)
    batch: int = 100
    lr: float = 5e-3
    measured: int = 100
    draws: int = 200
    chains: int = 8
    steps: int = 200
    leapfrogs: int = 3
    largest_error: float = 0.1
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("betas", "decoders"):
            each = getattr(self, name)
            if not each or list(each) != sorted(set(each)) or each[0] <= 0:
                raise ValueError(f"{name} must be numbers > 0, from the smallest to the largest; got {checks.short(each)}")
        if not set(self.decoders) <= set(self.betas):
            raise ValueError(f"decoders must be some of betas, {checks.short(self.betas)}; got {checks.short(self.decoders)}")
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")
        for name in ("chains", "steps", "leapfrogs", "draws"):
            checks.whole(name, getattr(self, name))
        checks.whole("measured", self.measured, minimum=2)


def plan(dataset: str, budget: str) -> Plan:
    shared = curve.plan(dataset, budget)
    names = ("dataset", "binarize", "passes", "network", "latent_dim", "hidden", "batch")
    full = Plan(**{name: getattr(shared, name) for name in names}, images=shared.sizes[-1], lr=shared.lrs[0])
    if dataset != "digits":
        full = full.changed(seeds=shared.seeds, again=shared.again, measured=50, chains=4, largest_error=0.25)
    if dataset in ("mnist", "glyphs") and budget == "full":
        full = full.changed(betas=shared.betas, steps=800, unclaimed=("β = 3 at β = 0.2, test",))
    if dataset == "glyphs" and budget == "full":
        full = full.changed(unclaimed=(*full.unclaimed, "β = 3 at β = 1, test"))
    few = {"seeds": shared.seeds, "again": shared.again, "betas": shared.betas}
    if budget == "quick":
        return full.changed(**few, decoders=shared.betas, measured=30, chains=4, steps=40)
    if budget == "smoke":
        return full.changed(**few, decoders=shared.betas[:2], measured=5, draws=10, chains=2, steps=4, leapfrogs=2)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    names = ("dataset", "binarize", "images", "network", "latent_dim", "hidden", "batch", "lr", "measured", "draws", "decoders")
    common = {name: plan.settings[name] for name in (*names, "chains", "leapfrogs")}
    cells = [  # the longest first
        {"seed": seed, "passes": passes, "betas": betas, "steps": steps} | common
        for passes, seeds, betas, steps in (
            (2 * plan.passes, plan.seeds[: plan.again], plan.decoders, [plan.steps]),
            (plan.passes, plan.seeds, plan.betas, [plan.steps, 2 * plan.steps]),
        )
        for seed in seeds
    ]
    frame = pd.DataFrame([row for found in lab.map(measure, cells, "decoders") for row in found["rows"]])
    first: Any = frame[frame["steps"] == plan.steps].drop(columns="steps")
    rows = first.to_dict("records")
    return Record.of(__name__, plan, lab, rows, checks=_checks(plan, effects(frame)), said=_said(plan, effects(first)))


def measure(
    dataset: str,
    binarize: str | None,
    images: int | None,
    network: str,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    measured: int,
    draws: int,
    decoders: list[float],
    chains: int,
    leapfrogs: int,
    seed: int,
    passes: int,
    betas: list[float],
    steps: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The VAEs of one seed, one for each β, and some of their decoders at all these β, on the first images of both splits.

    There are rows for each number of steps, those of the VAEs the same in all.
    """
    ds = load(dataset, binarize, images)
    make = {"shape": ds.shape, "network": network, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    config = training.TrainConfig(passes, batch, lr if ds.is_binary else lr / 3, "one_cycle", device=device)
    runs = sweep(lambda: models.VAE(**make), ds, betas, objective=objectives.BetaVAE, seeds=[seed], config=config, store=store)
    rows = []
    for each in runs:
        trained = each.objective.beta
        for split in SPLITS:
            x = getattr(ds, split)[:measured]
            own = estimators.evaluate(each.model, x, trained, draws)
            for count in steps:
                found = [(OWN, own)]
                if trained in decoders:
                    best = estimators.decoder_curve(each.model, x, betas, chains, count, leapfrogs, seed)
                    found += [(BEST, point) for point in best]
                place = {"trained": trained, "seed": seed, "split": split, "passes": passes, "steps": count}
                rows += [
                    place | {"objective": name, "beta": point.beta} | results.row_of(quantity, point.estimate(quantity))
                    for name, point in found
                    for quantity in ("rate", "distortion", "loss")
                ]
    return {"rows": rows}


def mean_curve(frame: Any, split: str, trained: float | None = None) -> curves.RDCurve:
    """From a record's frame the curve of a decoder with the best encoders, or of the VAEs with their own: means over seeds."""
    some = frame[(frame["split"] == split) & (frame["passes"] == frame["passes"].min())]
    some = (
        some[some["objective"] == OWN] if trained is None else some[some["trained"].where(some["objective"] == BEST) == trained]
    )
    wide = some.pivot_table(index=["beta", "seed"], columns="quantity", values="value")
    points = [
        [curves.RDPoint(beta, each["rate"], each["distortion"], seed=int(seed)) for (_, seed), each in rows.iterrows()]
        for beta, rows in wide.groupby("beta")
    ]
    return curves.RDCurve([curves.RDPoint.mean_of(each) for each in points])


def effects(frame: Any) -> Any:
    """What is claimed: objective, quantity and value, by seed, passes and, where there are several, steps.

    `LACKS`, by how much a VAE's D + βR is above that of its decoder with the best encoder, on both splits. `NEW`, that on test
    images less that on training images. `OTHER`, D + βR of a decoder with the best encoder at another's β, less that of the VAE
    of this β with its own.
    """
    losses = frame[frame["quantity"] == "loss"]
    own, best = (losses[losses["objective"] == name] for name in (OWN, BEST))
    how = [name for name in ("seed", "passes", "steps") if name in frame]
    keys = ["beta", "split", *how]
    pairs = best[best["beta"].isin(best["trained"])].merge(own[[*keys, "value"]], on=keys, suffixes=("", "_own"))
    value = pairs["value"] - pairs["value_own"]
    name, split = "β = " + pairs["trained"].map("{:g}".format), ", " + pairs["split"]
    mine = pairs["trained"] == pairs["beta"]
    lacks = pairs.assign(value=-value, quantity=LACKS, objective=name)[mine]
    others = pairs.assign(value=value, quantity=OTHER, objective=name + " at β = " + pairs["beta"].map("{:g}".format) + split)
    wide = lacks.pivot_table(index=["objective", *how], columns="split", values="value", sort=False)
    new = (wide["test"] - wide["train"]).rename("value").reset_index().assign(quantity=NEW)
    parts = [lacks.assign(objective=(name + split)[mine]), new, others[~mine]]
    whole: Any = pd.concat([each[["objective", "quantity", *how, "value"]] for each in parts], ignore_index=True)
    return whole


def _checks(plan: Plan, found: Any) -> list[convergence.Check]:
    """Errors; no optimum above what the VAE's own encoder reaches; twice the temperatures; and twice the passes.

    Of decoders at another's β only what is large is claimed: from seed to seed they differ more than what an encoder lacks.
    """
    plans = found[(found["passes"] == plan.passes) & (found["steps"] == plan.steps)]
    others = plans[plans["quantity"] == OTHER]
    size = found["objective"].map(others.groupby("objective")["value"].mean().abs())
    silent = (found["quantity"] == OTHER) & found["objective"].str.startswith(plan.unclaimed)
    found = found[~silent & ((found["quantity"] != OTHER) | (size >= _LARGE * plan.largest_error))]
    short = found[found["passes"] == plan.passes]
    first = short[short["steps"] == plan.steps]
    claims = {
        " ".join(key): results.Estimate.over_runs(each["value"].to_numpy())
        for key, each in first.groupby(["objective", "quantity"], sort=False)
    }
    limits = {name: convergence.allowed(claim, plan.largest_error) for name, claim in claims.items()}
    allowed = (short["objective"] + " " + short["quantity"]).map(limits)  # pyright: ignore
    twice = convergence.twice(short.assign(allowed=allowed, passes=short["steps"]), ["objective"])
    longer = found[found["steps"] == plan.steps]
    sides = convergence.claimed(longer, plan.passes, plan.seeds[: plan.again], 4 * plan.largest_error)
    return [
        convergence.not_claimed(convergence.errors(claims, plan.largest_error), plan.unclaimed),
        _no_worse(first),
        replace(twice, name="twice the temperatures move nothing that is claimed"),
        convergence.same_side(sides, ["objective"]),
    ]


def _no_worse(claims: Any) -> convergence.Check:
    """Whether no optimum that annealing found is above what the VAE's own encoder reaches, which would refute it."""
    lacks = results.over_seeds(claims[claims["quantity"] == LACKS].drop(columns=["passes", "steps"]), "objective")
    highest = {name: each.value + 2 * each.stderr for name, each in lacks.items()}
    name = min(highest, key=lambda name: highest[name])
    passed = highest[name] >= -1e-3  # a collapsed model has nothing to lack
    return convergence.Check("no best encoder is worse than the VAE's own", passed, f"the least is {name}: {lacks[name]:+}")


def _said(plan: Plan, claims: Any) -> str:
    some = claims[(claims["quantity"] == LACKS) & (claims["passes"] == plan.passes)].drop(columns="passes")
    lacks = results.over_seeds(some, "objective")
    parts = [
        f"{lacks[f'β = {beta:g}, test']} on test and {lacks[f'β = {beta:g}, train']} on training images at β = {beta:g}"
        for beta in plan.decoders
    ]
    return f"Of the VAEs' D + βR, in nats, the encoder is to blame for at least {'; '.join(parts)}."


def envelope(decoders: Sequence[curves.RDCurve]) -> curves.RDCurve:
    """Of several decoders' curves with the same βs, at each β the point with the least D + βR."""
    points = [min((each[beta] for each in decoders), key=lambda point: point.loss()) for beta in decoders[0].betas]
    return curves.RDCurve(points)


def summary(frame: Any) -> pd.DataFrame:
    """From a record's frame: `LACKS` on both splits and after twice the passes; the VAEs' test less training loss."""
    found = effects(frame).query("quantity == @LACKS")
    few, many = sorted(frame["passes"].unique())
    rows = {}
    for beta in sorted(frame["trained"][frame["objective"] == BEST].unique()):
        short, long = (found[found["passes"] == passes].drop(columns="passes") for passes in (few, many))
        short, long = (results.over_seeds(each, "objective") for each in (short, long))
        name = f"β = {beta:g}"
        own = {split: mean_curve(frame, split)[beta] for split in SPLITS}
        parting = [test.loss() - train.loss() for test, train in zip(own["test"].runs, own["train"].runs, strict=True)]
        rows[name] = {
            "training": short[f"{name}, train"],
            "test": short[f"{name}, test"],
            "test, twice the passes": long[f"{name}, test"],
            "VAE's loss, test less training": results.Estimate.over_runs(parting),
        }
    return pd.DataFrame(rows).T
