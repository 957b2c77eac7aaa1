"""One model of many β against one β-VAE for each β: the regret of D + βR.

The model takes β as an input and is trained for all of them at once. That one network can be conditioned on the weights of its
loss, a β-VAE's among them, by FiLM and with log-uniform weights, is of Dosovitskiy & Djolonga (2020); the gates that it is
compared with are those of the Multi-Rate VAE (Bae et al. 2023).

All have the same architecture, batch size and schedule, and differences are in pairs of seeds. They are taken twice. On the
*training* images, which tell how good an optimum each has found, learning rates are chosen by the loss there. On the *test*
images learning rate and number of passes are chosen on the validation images, of a β-VAE for its β, of one model by the mean
over the βs that it is compared at: where there are few images longer trainings of a small β are worse, and one model has one
number of passes for all β. Further learning rates and passes are tried while the best is the largest or the smallest, up to the
passes that a model may have.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from nbvae import checks, curves, data, estimators, models, objectives, results, training
from studies import convergence, responses, searching
from studies.lab import Lab, sweep
from studies.objectives import likelihood
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record
from studies.searching import Choice, Entrant

QUESTION = "What does one model of many β lose against one β-VAE for each, at equal steps and at equal compute?"
CHAPTER = "05_one_model_many_betas"
DATASETS = ("digits", "mnist", "glyphs")
DEDICATED = "β-VAE"
ABOVE = "regret above the first kind's"
NAMED = ["quantity", "split", "objective", "beta"]  # by these a claim is named
DATA = ("dataset", "binarize", "images")
SHAPE = ("network", "hidden", "latent_dim", "batch", "low", "high")
CONDITIONINGS = ("film", "gates", "gain", "free variance", "log β alone")


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `kinds`: models of many β, "CONDITIONING p=POWER", trained with the weights β^(−POWER). "film" and "gates" are those of
      `models.MultiBetaVAE`; "gain" scales and shifts the code alone, as codecs of variable rate do; "free variance" is film
      without the log-variance's response to β, "log β alone" film by linear functions of log β. The first is the one that is
      also compared at equal compute.
    - `betas`: where they are compared.
    - `points`: the numbers of β-VAEs, of a short curve and of a long one, whose compute one model is given.
    - `low`, `high`: the range of β that one model is trained for, a wider one: at its ends it has neighbours on one side only.
    - `network`, `hidden`, `latent_dim`, `batch`: of the models and their training, under a one-cycle schedule.
    - `passes`: over the training images, at most, or half as many, a quarter, …
    - `again`, `against`: how many of the seeds may also have `against` times as many, to compare with.
    - `search`: on how many of the seeds passes and learning rate are chosen; the others are trained with what is chosen.
    - `lrs`: the first learning rates to choose from.
    - `finer`: the β of β-VAEs for which a rate between the best one and the better of its neighbours is tried as well.
    - `gain`: by how much the largest or the smallest must be better than the others for the search to go on, in nats.
    - `price`, `sweep_price`: what a step of one model costs, in steps of a β-VAE that is trained alone, and of one of four in a
      sweep (benchmarks/speed.py).
    - `draws`: of z for each image, to measure D; `measured`: how many images of a split at most, None for all.
    - `largest_error`: the most that the standard error of a mean regret may be, in nats, unless it is at most a quarter of it.
    - `unclaimed`: what is measured and not claimed, neither its side of zero nor its size, by how its name begins, with
      quantity, split, objective and β, as "regret train film p=0 3".
    - `keep`: whether a model of the first kind is recorded, as "one_model".
    """

    kinds: tuple[str, ...] = ("film p=0", "film p=0.25", "gain p=0", "gates p=0", "free variance p=0", "log β alone p=0")
    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    points: tuple[int, ...] = (4, 10)
    low: float = 0.05
    high: float = 15.0
    network: str = "mlp"
    hidden: tuple[int, ...] = (128, 128)
    latent_dim: int = 8
    batch: int = 100
    passes: int = 400
    again: int = 6
    against: float = 2.0
    search: int = 3
    lrs: tuple[float, ...] = (1e-3, 2.5e-3, 6e-3)
    finer: tuple[float, ...] = ()
    gain: float = 0.02
    price: float = 1.5
    sweep_price: float = 3.0
    draws: int = 10
    measured: int | None = None
    largest_error: float = 0.1
    unclaimed: tuple[str, ...] = ()
    keep: bool = False
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("passes", "batch", "draws", "measured"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name))
        for name in ("price", "sweep_price", "largest_error"):
            checks.positive(name, getattr(self, name))
        if not self.kinds or len(set(map(Kind.of, self.kinds))) < len(self.kinds):
            raise ValueError("kinds must be different, at least one")
        for name in ("betas", "lrs"):
            each = getattr(self, name)
            if len(each) < 1 + (name == "betas") or list(each) != sorted(set(each)) or each[0] <= 0:
                what = "at least two numbers" if name == "betas" else "numbers"
                raise ValueError(f"{name} must be {what} > 0, from the smallest to the largest; got {checks.short(each)}")
        convergence.accept_unclaimed(
            self.unclaimed, [f"{what} {split}" for what in ("regret", ABOVE) for split in searching.CHOSEN_BY]
        )
        if not set(self.finer) <= set(self.betas):
            raise ValueError(f"finer must be some of betas, {self.betas}; got {self.finer}")
        if not self.points or len(set(self.points)) < len(self.points) or min(self.points) < 1:
            raise ValueError(f"points must be different whole numbers >= 1; got {checks.short(self.points)}")
        if not 0 < self.low <= self.betas[0] or self.high < self.betas[-1] or self.low == self.high:
            raise ValueError("low and high must have all of betas between them")
        convergence.accept_against(self.passes, self.against)
        if len(self.seeds) < 2 or not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")
        if min(self.worth(points, max(self.price, self.sweep_price)) for points in self.points) < self.begin[0]:
            raise ValueError("price, sweep_price and points leave one model fewer passes than the search begins with")
        if not 1 <= self.search <= self.again:
            raise ValueError("search must be at least one of the seeds that are trained again")

    @property
    def begin(self) -> list[int]:
        """The numbers of passes that the search begins with: the fewest that are compared, and half of them."""
        fewest, most = sorted((self.passes, round(self.against * self.passes)))
        return sorted({(fewest + 1) // 2 if fewest > 1 else most, fewest})

    def worth(self, points: int, price: float) -> int:
        """The most passes, `passes` or 2, 4, … times or parts of them, that cost no more than `passes` of so many β-VAEs.

        >>> Plan(passes=100).worth(4, price=1.5), Plan(passes=100).worth(2, price=3.0)
        (200, 50)
        """
        return int(self.passes * 2.0 ** math.floor(math.log2(points / price)))


class Kind(NamedTuple):
    """A model of many β: how it is conditioned, and the power of its weights."""

    conditioning: str
    power: float

    @classmethod
    def of(cls, name: str) -> "Kind":
        conditioning, _, power = name.rpartition(" p=")
        try:
            checks.choice("a conditioning", conditioning, CONDITIONINGS)
            return cls(conditioning, checks.not_negative("p", float(power)))
        except ValueError as error:
            raise ValueError(f"kinds must be like 'film p=0.25', got {name!r}: {checks.line(error)}") from None


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset, keep=dataset == "digits")
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            images=10_000,
            hidden=(200, 200),
            latent_dim=16,
            passes=64,
            lrs=(1e-3, 2e-3, 4e-3),
            gain=0.05,
            price=1.3,
            sweep_price=1.7,
            draws=1,
            measured=4000,
            largest_error=0.25,
            seeds=(0, 1, 2, 3, 4),
            again=5,
            search=3,
            kinds=("film p=0", "gain p=0", "gates p=0", "log β alone p=0"),
            points=(4,),
        )
    if dataset == "mnist":
        # Found to be needed: at β = 3 twice the passes turn the side, and the β-VAE of .3 was behind that of .1.
        full = full.changed(unclaimed=("regret train film p=0 3",), finer=(0.3,), seeds=(0, 1, 2, 3, 4, 5, 6), again=7)
    if dataset == "glyphs":
        # Found to be needed: after half as many passes β-VAEs of a smaller β were ahead under β = 1 and 3.
        full = full.changed(binarize="threshold", passes=128, against=0.5, unclaimed=("regret test film p=0 mean",))
    short = full.changed(
        kinds=(full.kinds[0], "gates p=0"), lrs=full.lrs[1:2], draws=1, seeds=(0, 1), again=2, search=1, against=2.0
    )
    if budget == "quick":
        return short.changed(passes=20, images=2000, measured=2000, points=(4,)).stretched("passes")
    if budget == "smoke":
        return short.changed(images=200, measured=500, passes=2, betas=(0.3, 1.0), points=(4,), hidden=(16,))
    return full


def run(plan: Plan, lab: Lab) -> Record:
    every = searched(plan, lab)
    frame = compared(plan, every, 1, plan.seeds)
    other = compared(plan, every, plan.against, plan.seeds[: plan.again])
    return Record.of(
        __name__,
        plan,
        lab,
        frame.to_dict("records"),
        checks=[
            _crossed(plan, frame, DEDICATED, "the β-VAEs"),
            _crossed(plan, frame, plan.kinds[0], "one model's views"),
            *_checks(plan, {plan.passes: frame, round(plan.against * plan.passes): other}),
        ],
        said=_said(plan, frame, other),
        runs={"one_model": _kept(plan, lab, every)} if plan.keep else {},
    )


# What is trained: with the first seeds everything that is chosen from, with the others what is chosen.


def searched(plan: Plan, lab: Lab) -> Any:
    """All trainings of the study: a row for each and each β, with what validation and test images say of it."""
    first, most = plan.seeds[: plan.search], limits(plan)
    todo = [Choice(*member, passes, lr) for member in most for passes in plan.begin for lr in plan.lrs]
    every: Any = pd.DataFrame()
    while todo:
        found = trainings(plan, lab, [(choice, first) for choice in todo], "the search")
        every = pd.concat([every, found], ignore_index=True)
        todo = list(
            dict.fromkeys(each for by in searching.CHOSEN_BY.values() for each in searching.further(every, most, plan.gain, by))
        )
    if between := in_between(plan, every):
        found = trainings(plan, lab, [(choice, first) for choice in between], "a finer search")
        every = pd.concat([every, found], ignore_index=True)
    chosen: dict[Choice, tuple[int, ...]] = {}
    for times, seeds in sorted([(plan.against, plan.seeds[: plan.again]), (1.0, plan.seeds)], reverse=True):
        for entrant in entrants(plan):
            for by in searching.CHOSEN_BY.values():
                for choice in searching.choose(plan, every, entrant, times, by):
                    chosen[choice] = max(chosen.get(choice, ()), seeds[plan.search :], key=len)
    rest = [(choice, seeds) for choice, seeds in chosen.items() if seeds]
    return pd.concat([every, trainings(plan, lab, rest, "other seeds")], ignore_index=True) if rest else every


def limits(plan: Plan) -> dict[tuple[str, float], int]:
    """The most passes of each conditioning and member, of all that is compared."""
    most: dict[tuple[str, float], int] = {}
    for entrant in entrants(plan):
        for member in entrant.members:
            key = entrant.conditioning, member
            most[key] = max(most.get(key, 0), round(max(1.0, plan.against) * entrant.passes))
    return most


def trainings(plan: Plan, lab: Lab, todo: Iterable[tuple[Choice, tuple[int, ...]]], what: str) -> Any:
    """Train each of `todo` with its seeds, members of one kind together, the longest first."""
    stacks: dict[Any, list[float]] = {}
    for choice, seeds in todo:
        stacks.setdefault((choice.conditioning, choice.passes, choice.lr, seeds), []).append(choice.member)
    cells = [
        {"conditioning": conditioning, "passes": passes, "lr": lr, "seeds": seeds, "members": members}
        | {name: plan.settings[name] for name in (*DATA, *SHAPE, "betas", "draws", "measured")}
        for (conditioning, passes, lr, seeds), members in stacks.items()
    ]
    cells.sort(key=lambda cell: cell["passes"] * len(cell["seeds"]) * len(cell["members"]), reverse=True)
    return pd.DataFrame([row for found in lab.map(train, cells, what) for row in found["rows"]])


def in_between(plan: Plan, every: Any) -> list[Choice]:
    """For the β-VAEs of `finer`, a rate between the best one and the better of its neighbours, for each number of passes."""
    found = []
    for member in plan.finer:
        mine = every[(every["conditioning"] == DEDICATED) & (every["member"] == member)]
        for by in searching.CHOSEN_BY.values():
            means = searching.means_of(mine, by)
            for passes in sorted({plan.passes, round(plan.against * plan.passes)}):
                losses = means[passes]
                best = int(losses.argmin())
                near = losses.iloc[max(best - 1, 0) : best + 2].drop(losses.index[best])
                lr = searching.rounded(math.sqrt(losses.index[best] * near.idxmin()))
                found.append(Choice(DEDICATED, member, passes, lr))
    return list(dict.fromkeys(found))


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    betas: list[float],
    draws: int,
    measured: int | None,
    **settings: Any,
) -> dict[str, Any]:
    """Trainings of one conditioning, for each member and seed: at each β what validation, test and training images say.

    `settings` are those of `trained`.
    """
    ds, rows = load(dataset, binarize, images), []
    for each in trained(ds, **settings):
        own = getattr(each.objective, "beta", None)  # of a β-VAE
        place = {name: settings[name] for name in ("conditioning", "passes", "lr")} | {"seed": each.config.seed}
        place["member"] = each.objective.power if own is None else own
        for beta in betas if own is None else [own]:
            model = each.model.at(beta) if own is None else each.model
            validation = estimators.evaluate(model, ds.validation[:measured], beta, draws)
            row = place | {"beta": beta, "validation loss": validation.loss()}
            for split, x in (("test", ds.test), ("train", ds.train)):
                point = estimators.evaluate(model, x[:measured], beta, draws)
                found = {"loss": point.loss(), "rate": point.rate, "distortion": point.distortion, "n": point.n_examples}
                row |= {f"{split} {name}": value for name, value in found.items()}
            rows.append(row)
    return {"rows": rows}


def trained(
    ds: data.Dataset,
    network: str,
    hidden: list[int],
    latent_dim: int,
    batch: int,
    low: float,
    high: float,
    conditioning: str,
    members: list[float],
    passes: int,
    lr: float,
    seeds: list[int],
    store: str | None,
    device: str,
) -> list[Any]:
    """The runs of each member, a β or the power of one model's weights, with each seed.

    One that diverged is as it was at its last good epoch: too large a learning rate is part of the search.
    """
    shape = {"shape": ds.shape, "network": network, "hidden": hidden, "latent_dim": latent_dim} | likelihood(ds)

    def make() -> models.VAE:
        return models.VAE(**shape) if conditioning == DEDICATED else responses.many(conditioning, shape, (low, high))

    each = [objectives.BetaVAE(member) if conditioning == DEDICATED else objectives.MultiBeta(member) for member in members]
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    try:
        return sweep(make, ds, objectives=each, seeds=seeds, config=config, store=store)
    except training.Diverged as stopped:
        return stopped.runs


# What is compared.


def entrants(plan: Plan) -> list[Entrant]:
    """Everything that is compared: at equal steps all kinds; at equal compute the first."""
    kinds = {name: Kind.of(name) for name in plan.kinds}
    found = [Entrant(DEDICATED, DEDICATED, plan.betas, plan.passes)]
    found += [Entrant(name, kind.conditioning, (kind.power,), plan.passes) for name, kind in kinds.items()]
    name, kind = next(iter(kinds.items()))
    for where, price in (("", plan.price), (" in a sweep", plan.sweep_price)):
        for points in plan.points:
            which = f"{name}, compute of {points} β-VAEs{where}"
            found.append(Entrant(which, kind.conditioning, (kind.power,), plan.worth(points, price)))
    return found


def compared(plan: Plan, every: Any, times: float, seeds: tuple[int, ...]) -> Any:
    """A tidy frame of all that is compared, where it may have so many times its passes."""
    rows = []
    for entrant in entrants(plan):
        for split, by in searching.CHOSEN_BY.items():
            for choice in searching.choose(plan, every, entrant, times, by):
                mine = np.logical_and.reduce([every[name] == value for name, value in choice._asdict().items()])
                for each in every[mine & every["seed"].isin(seeds)].to_dict("records"):
                    place = {"objective": entrant.name, "split": split, "n": each[f"{split} n"], "stderr": None}
                    place |= {name: each[name] for name in ("beta", "seed", "passes", "lr")}
                    quantities = ("loss", "rate", "distortion")
                    rows += [place | {"quantity": name, "value": each[f"{split} {name}"]} for name in quantities]
    return results.frame_of(rows)


def regrets(frame: Any) -> Any:
    """D + βR less that of the β-VAE with the same seed: for each split and β a row, and one for the mean, whose β is "mean"."""
    losses = frame[frame["quantity"] == "loss"].drop(columns=["passes", "lr"])
    each: Any = results.paired(losses, objective=DEDICATED)[["split", "objective", "beta", "seed", "value"]]
    means = each.groupby(["split", "objective", "seed"], sort=False)["value"].mean().reset_index().assign(beta="mean")
    return pd.concat([means, each.assign(beta=each["beta"].map("{:g}".format))]).assign(quantity="regret")


def curve_of(frame: Any, objective: str) -> curves.RDCurve:
    """Rates and distortions of what is compared, on test images, with its seeds."""
    mine = frame[(frame["objective"] == objective) & (frame["split"] == "test")]
    wide = mine.pivot_table(index=["beta", "seed"], columns="quantity", values="value")
    points = [
        curves.RDPoint.mean_of(
            [curves.RDPoint(beta, each["rate"], each["distortion"], seed=int(seed)) for (_, seed), each in rows.iterrows()]
        )
        for beta, rows in wide.groupby("beta")
    ]
    return curves.RDCurve(points)


def delta_rates(frame: Any) -> Any:
    """By how much the rate is above that of the β-VAEs with the same seed at equal distortion, as `RDCurve.bd_rate` has it.

    A row for each objective and seed; none for an objective that has no distortions in common with them.
    """
    by_seed = {}
    for name in frame["objective"].unique():
        runs = [{run.seed: run for run in point.runs} for point in curve_of(frame, name)]
        by_seed[name] = {seed: curves.RDCurve([each[seed] for each in runs]) for seed in runs[0]}
    dedicated, found = by_seed.pop(DEDICATED), []
    for name, each in by_seed.items():
        with contextlib.suppress(ValueError):
            deltas = [curve.bd_rate(dedicated[seed]) for seed, curve in each.items()]
            found += [{"objective": name, "seed": seed, "value": delta} for seed, delta in zip(each, deltas, strict=True)]
    return pd.DataFrame(found, columns=pd.Index(["objective", "seed", "value"])).assign(quantity="delta rate")


# What is claimed: of the mean regret of FiLM its size, and otherwise sides of zero.


def claims_of(plan: Plan, frame: Any) -> Any:
    """Mean regrets whose size is claimed, by split and objective: of the kinds whose layers have FiLM's free response.

    What the others lose shrinks for as long as they are trained.
    """
    return results.over_seeds(convergence.without(_free(plan, frame), NAMED, plan.unclaimed), by=["split", "objective"])


def _free(plan: Plan, frame: Any) -> Any:
    """The mean regrets of the kinds whose layers have FiLM's free response: a row for each split, objective and seed."""
    kinds = [name for name in plan.kinds if Kind.of(name).conditioning in ("film", "free variance")]
    each = regrets(frame)
    return each[(each["beta"] == "mean") & each["objective"].isin(kinds)]


def sides(plan: Plan, frame: Any) -> Any:
    """What may be claimed to be on one side of zero: a row for each split, objective, β, quantity and seed.

    The mean regrets of all kinds; on training images those of the first kind at each β, and by how much the mean of every other
    entrant is above that of the first kind.
    """
    first, each = plan.kinds[0], regrets(frame)
    own = (each["objective"] == first) & (each["split"] == "train")
    means = each[each["beta"] == "mean"]
    above: Any = results.paired(means[means["split"] == "train"], objective=first)
    return pd.concat(
        [means[means["objective"].isin(plan.kinds)], each[own & (each["beta"] != "mean")], above.assign(quantity=ABOVE)]
    )


def _checks(plan: Plan, frames: Mapping[int, Any]) -> list[convergence.Check]:
    """Twice or half the passes for all against what is claimed: sizes, and sides of what is clear of zero after the plan's."""
    claims, some = claims_of(plan, frames[plan.passes]), plan.seeds[: plan.again]
    limits = [
        {"split": split, "objective": name, "beta": "mean", "allowed": convergence.allowed(claim, plan.largest_error)}
        for (split, name), claim in claims.items()
    ]
    both = pd.concat([regrets(frame).assign(passes=passes) for passes, frame in frames.items()])
    both = both[both["seed"].isin(some)].merge(pd.DataFrame(limits))
    keys = ["split", "objective", "beta"]
    clear = convergence.clear(convergence.without(sides(plan, frames[plan.passes]), NAMED, plan.unclaimed), NAMED)
    clear = clear[NAMED].drop_duplicates()
    on: Any = pd.concat([sides(plan, frame).merge(clear).assign(passes=passes) for passes, frame in frames.items()])
    one_side = convergence.same_side(on[on["seed"].isin(some)], keys)
    return [
        convergence.errors({f"{name}, {split}": claim for (split, name), claim in claims.items()}, plan.largest_error),
        convergence.twice(both, keys),
        convergence.not_claimed(one_side, plan.unclaimed),
    ]


def _crossed(plan: Plan, frame: Any, objective: str, whose: str) -> convergence.Check:
    """Trainings or views of several β, each under D + βR of every other, on the training images."""
    mine = frame[(frame["objective"] == objective) & (frame["split"] == "train")]
    check = convergence.cross_table(convergence.under_others(mine, plan.betas), plan.largest_error)[1]
    return replace(check, name=f"of {whose}, {check.name}")


def _said(plan: Plan, frame: Any, other: Any) -> str:
    found, said = results.over_seeds(_free(plan, frame), by=["split", "objective"]), []
    for split in searching.CHOSEN_BY:
        said.append("; ".join(f"{name} {mean:+}" for name, mean in found[split].items()) + f" ({split})")
    own = results.over_seeds(regrets(other), by=["split", "objective", "beta"])["train"][plan.kinds[0]].drop("mean")
    after = ", ".join(f"{regret:+} at β = {beta}" for beta, regret in own.items())
    times = "twice" if plan.against > 1 else "half"
    return (
        f"Regret of D + βR against one β-VAE for each β, in nats, means over βs: {'. '.join(said)}. "
        f"With {times} the passes for all, those of {plan.kinds[0]} on training images are {after}."
    )


# What is kept: a model that pages load.


def _kept(plan: Plan, lab: Lab, every: Any) -> training.Run:
    """The training of the first kind at equal steps, with the first seed: from the store, where there is one."""
    entrant = next(each for each in entrants(plan) if each.name == plan.kinds[0])
    [choice] = searching.choose(plan, every, entrant, 1, searching.CHOSEN_BY["test"])
    seed = plan.seeds[0]
    cell = {name: plan.settings[name] for name in (*DATA, *SHAPE)} | choice._asdict() | {"seed": seed}
    [found] = lab.map(weights, [cell], "the model that is kept")
    ds = plan.data()
    shape = {"shape": ds.shape, "network": plan.network, "hidden": plan.hidden, "latent_dim": plan.latent_dim}
    model = responses.many(choice.conditioning, shape | likelihood(ds), (plan.low, plan.high))
    model.load_state_dict({name: torch.from_numpy(found[name]) for name in model.state_dict()})
    config = training.TrainConfig(choice.passes, plan.batch, choice.lr, "one_cycle", seed, device="cpu")
    return training.Run(model, objectives.MultiBeta(choice.member), config, found["history"], found["seconds"])


def weights(
    dataset: str, binarize: str | None, images: int | None, member: float, seed: int, **settings: Any
) -> dict[str, Any]:
    """One training of one model: its weights by their names, its history and its seconds."""
    [run] = trained(load(dataset, binarize, images), members=[member], seeds=[seed], **settings)
    state = {name: value.cpu().numpy() for name, value in run.model.state_dict().items()}
    return state | {"history": run.history, "seconds": run.seconds}
