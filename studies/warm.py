"""A curve of β-VAEs, each begun as the one of the β before: its regret of D + βR against fresh ones.

Three curves have a model at each β. *Fresh* ones begin at random weights. A *chain* goes along the βs, from the smallest or
from the largest, and begins each model at the weights that the one before ended with, with a schedule of its own. All are
trained with as many passes at each β as the β-VAEs of `studies.multi_beta` (on the glyphs with half as many), and once more at
the compute of one training: as many passes in all, shared by the βs. Data, networks, batches, βs and seeds are that study's, so
that its rows can be put beside these (`beside`).

As there, learning rates are chosen twice, for the training images by the loss there, for the test images by that of the
validation images: of a fresh model for its β, of a chain, which has one for all, by the mean over its βs. Further rates are
tried while the best is the largest or the smallest. A curve may be trained for fewer passes than it is given where that is
better: those of one training, and still fewer while the fewest are the best. It is never given more, and no count of passes has
the search in it.

At its end a chain has seen more passes than a fresh model, at its first β as many. So its first models may be worse under their
own β than those that went on from them. Of curves at the compute of one training this is said, and not checked.

On MNIST and the glyphs the curve has three of that study's five βs, a factor of ten apart, and three seeds, of which the first
alone chooses: so a core has enough of an hour. There is no more compute for trainings of twice the passes, on the digits
neither: what is claimed is compared with half of them.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from nbvae import checks, data, estimators, models, results, training
from studies import convergence, multi_beta, searching
from studies.lab import Lab, sweep
from studies.objectives import likelihood
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record
from studies.searching import Choice, Entrant

QUESTION = (
    "What does a curve of β-VAEs cost, each begun as the one of the β before, beside fresh ones and beside one model for all?"
)
CHAPTER = multi_beta.CHAPTER
DATASETS = multi_beta.DATASETS
FRESH, UP, DOWN = multi_beta.DEDICATED, "from small β", "from large β"
ONE = " at the compute of one"
NAMES = tuple(kind + which for which in ("", ONE) for kind in (FRESH, UP, DOWN))
SHARED = (  # with the plan of the study of many β
    *("dataset", "binarize", "images", "network", "hidden", "latent_dim", "batch", "betas", "passes"),
    *("lrs", "gain", "draws", "measured", "largest_error", "seeds", "again"),
)
TRAINED = (*SHARED[:8], "draws", "measured")
DIRECTION, BEGUN = f"regret above that {UP}", f"regret above that of {FRESH}{ONE}"


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: of the curve.
    - `network`, `hidden`, `latent_dim`, `batch`: of the models and their training, under a one-cycle schedule at each β.
    - `passes`: over the training images, of each β, or in all at the compute of one training.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `search`: on how many of the seeds learning rate and passes are chosen.
    - `lrs`: the first learning rates to choose from.
    - `gain`: by how much an edge of what was tried must be better than the rest for the search to go on, in nats.
    - `draws`: of z for each image, to measure D; `measured`: how many images of a split at most, None for all.
    - `largest_error`: the most that the standard error of a mean regret may be, in nats, unless it is at most a quarter of it.
    - `crossed`: the curves, by their names, each of whose models must be the best of them under its own β.
    - `unclaimed`: what is measured and not claimed to be on one side of zero, by how its name begins, with quantity, split,
      objective and β, as "regret train from small β 3".
    """

    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    network: str = "mlp"
    hidden: tuple[int, ...] = (128, 128)
    latent_dim: int = 8
    batch: int = 100
    passes: int = 400
    again: int = 6
    against: float = 0.5
    search: int = 2
    lrs: tuple[float, ...] = (1e-3, 2.5e-3, 6e-3)
    gain: float = 0.02
    draws: int = 10
    measured: int | None = None
    largest_error: float = 0.1
    crossed: tuple[str, ...] = (FRESH, UP, DOWN)
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("passes", "batch", "draws", "measured"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name))
        checks.positive("largest_error", self.largest_error)
        for name in ("betas", "lrs"):
            each = getattr(self, name)
            if len(each) < 1 + (name == "betas") or list(each) != sorted(set(each)) or each[0] <= 0:
                what = "at least two numbers" if name == "betas" else "numbers"
                raise ValueError(f"{name} must be {what} > 0, from the smallest to the largest; got {checks.short(each)}")
        convergence.accept_against(self.passes, self.against)
        least = round(len(self.betas) / min(1, self.against))
        if self.passes < least:
            raise ValueError(f"passes must be at least {least}: the fewest that are compared are shared by {len(self.betas)} β")
        quantities = "regret", DIRECTION, BEGUN
        convergence.accept_unclaimed(
            self.unclaimed, [f"{what} {split}" for what in quantities for split in searching.CHOSEN_BY]
        )
        if len(self.seeds) < 2 or not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")
        if not 1 <= self.search <= len(self.seeds):
            raise ValueError("search must be at least one of the seeds")
        for name in self.crossed:
            checks.choice("crossed", name, NAMES)


def plan(dataset: str, budget: str) -> Plan:
    same = multi_beta.plan(dataset, "full").settings
    full = Plan(**{name: same[name] for name in SHARED})
    if dataset in ("mnist", "glyphs"):
        full = full.changed(betas=full.betas[::2], seeds=full.seeds[:3], again=3, search=1, lrs=(2e-3, 4e-3, 8e-3), passes=64)
    else:
        # Found to be needed on the digits, of chains from the largest β: their first models are behind their own last ones, and
        # longer training moves what they lose on new images, and what they lose against fresh ones at the compute of one.
        aside = ("regret test", *(f"{BEGUN} {split}" for split in searching.CHOSEN_BY))
        full = full.changed(crossed=(FRESH, UP), unclaimed=tuple(f"{name} {DOWN}" for name in aside))
    short = full.changed(lrs=full.lrs[1:2], draws=1, seeds=(0, 1), again=2, search=1, against=2.0)
    if budget == "quick":
        return short.changed(passes=10, images=2000, measured=2000).stretched("passes")
    if budget == "smoke":
        return short.changed(images=200, measured=500, passes=2, betas=(0.3, 1.0), hidden=(16,))
    return full


def run(plan: Plan, lab: Lab) -> Record:
    searched = search(plan, lab)
    chosen = choices(plan, searched)
    every = complete(plan, lab, searched, chosen)
    frame = compared(plan, every, chosen, 1.0, plan.seeds)
    other = compared(plan, every, chosen, plan.against, plan.seeds[: plan.again])
    return Record.of(
        __name__,
        plan,
        lab,
        frame.to_dict("records"),
        checks=[
            *(
                replace(check, name=f"{name}: {check.name}")
                for name in plan.crossed
                for check in [crossed(plan, frame, name)[1]]
            ),
            *_checks(plan, {plan.passes: frame, round(plan.against * plan.passes): other}),
        ],
        said=_said(plan, frame),
    )


# What is trained. Passes of a curve are counted in all, of a fresh model too, which has its share of them.


def entrants(plan: Plan) -> list[Entrant]:
    """What is compared: fresh models, each chosen by itself, and chains, which are chosen as a whole."""
    members = {FRESH: plan.betas, UP: (0.0,), DOWN: (0.0,)}
    most = {"": plan.passes * len(plan.betas), ONE: plan.passes}
    return [Entrant(kind + which, kind, members[kind], most[which]) for which in most for kind in members]


def shared(passes: int, count: int) -> list[int]:
    """Passes shared by so many βs, as equally as whole passes can be, the first ones with one more.

    >>> shared(64, 5)
    [13, 13, 13, 13, 12]
    """
    return [passes // count + (i < passes % count) for i in range(count)]


def search(plan: Plan, lab: Lab) -> Any:
    """The trainings that are chosen from, with the first seeds: a row for each and each β."""
    first, count = plan.seeds[: plan.search], len(plan.betas)
    most = {(each.conditioning, member): plan.passes * count for each in entrants(plan) for member in each.members}
    todo = [Choice(*key, passes, lr) for key in most for passes in (plan.passes * count, plan.passes) for lr in plan.lrs]
    every: Any = pd.DataFrame()
    while todo:
        every = pd.concat([every, trainings(plan, lab, [(choice, first) for choice in todo], "the search")], ignore_index=True)
        beyond = [each for by in searching.CHOSEN_BY.values() for each in searching.further(every, most, plan.gain, by)]
        todo = [each for each in dict.fromkeys(beyond) if each.passes >= count]
    return every


def choices(plan: Any, searched: Any) -> dict[tuple[str, str], list[Choice]]:
    """The best trainings of each entrant for each split."""
    return {
        (entrant.name, split): searching.choose(plan, searched, entrant, 1, by)
        for entrant in entrants(plan)
        for split, by in searching.CHOSEN_BY.items()
    }


def complete(plan: Plan, lab: Lab, searched: Any, chosen: dict[tuple[str, str], list[Choice]]) -> Any:
    """All trainings: those of the search, and what is chosen with the other seeds and for the other number of passes."""
    columns = [*Choice._fields, "seed"]
    known = set(searched[columns].itertuples(index=False, name=None))
    todo: dict[Choice, dict[int, None]] = {}
    for times, seeds in ((1.0, plan.seeds), (plan.against, plan.seeds[: plan.again])):
        for choice in [times_as_long(each, times) for every in chosen.values() for each in every]:
            todo.setdefault(choice, {}).update({seed: None for seed in seeds if (*choice, seed) not in known})
    rest = [(choice, tuple(seeds)) for choice, seeds in todo.items() if seeds]
    return pd.concat([searched, trainings(plan, lab, rest, "what is chosen")], ignore_index=True)


def times_as_long(choice: Choice, times: float) -> Choice:
    """The training for so many times its passes, at the same learning rate."""
    return choice._replace(passes=round(times * choice.passes))


def trainings(plan: Plan, lab: Lab, todo: Iterable[tuple[Choice, tuple[int, ...]]], what: str) -> Any:
    """Train each of `todo` with its seeds, fresh ones first: the first model of a chain is one of them."""
    stacks: dict[Any, list[float]] = {}
    for choice, seeds in todo:
        stacks.setdefault((choice.conditioning, choice.passes, choice.lr, seeds), []).append(choice.member)
    cells = [
        {"conditioning": conditioning, "passes": passes, "lr": lr, "seeds": seeds, "members": members}
        | {name: plan.settings[name] for name in TRAINED}
        for (conditioning, passes, lr, seeds), members in stacks.items()
    ]
    cells.sort(key=lambda cell: (cell["conditioning"] != FRESH, -cell["passes"] * len(cell["seeds"])))
    return pd.DataFrame([row for found in lab.map(train, cells, what) for row in found["rows"]])


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    draws: int,
    measured: int | None,
    **settings: Any,
) -> dict[str, Any]:
    """A curve for each seed: at each β what validation, test and training images say. `settings` are those of `trained`."""
    ds, rows = load(dataset, binarize, images), []
    for each in trained(ds, **settings):
        beta = each.objective.beta
        row = {name: settings[name] for name in ("conditioning", "passes", "lr")} | {"seed": each.config.seed, "beta": beta}
        row |= {"member": beta if settings["conditioning"] == FRESH else 0.0, "own passes": each.config.epochs}
        row["validation loss"] = estimators.evaluate(each.model, ds.validation[:measured], beta, draws).loss()
        for split, x in (("test", ds.test), ("train", ds.train)):
            point = estimators.evaluate(each.model, x[:measured], beta, draws)
            found = {"loss": point.loss(), "rate": point.rate, "distortion": point.distortion, "n": point.n_examples}
            row |= {f"{split} {name}": value for name, value in found.items()}
        rows.append(row)
    return {"rows": rows}


def trained(
    ds: data.Dataset,
    betas: list[float],
    network: str,
    hidden: list[int],
    latent_dim: int,
    batch: int,
    conditioning: str,
    members: list[float],
    passes: int,
    lr: float,
    seeds: list[int],
    store: str | None,
    device: str,
) -> list[Any]:
    """The runs of a curve, or of those `members` of a fresh one, in the order of training, seeds innermost.

    One that diverged is as it was at its last good epoch, and a chain goes on from there.
    """
    make = partial(models.VAE, ds.shape, latent_dim, network=network, hidden=hidden, **likelihood(ds))
    order = betas[::-1] if conditioning == DOWN else betas
    runs, before = [], []
    for beta, share in zip(order, shared(passes, len(betas)), strict=True):
        if conditioning == FRESH and beta not in members:
            continue
        begin = begun_as(before) if before else make
        config = training.TrainConfig(share, batch, lr, "one_cycle", device=device)
        try:
            found = sweep(begin, ds, [beta], seeds=seeds, config=config, store=store)
        except training.Diverged as stopped:
            found = stopped.runs
        runs += found
        if conditioning != FRESH:
            before, seeds = found, [each.config.seed for each in found]
            if not seeds:  # all diverged in their first epoch
                break
    return runs


def begun_as(runs: Iterable[Any]) -> Callable[[], models.VAE]:
    """What makes the models of a sweep: copies of these, in turn."""
    copies = iter([deepcopy(each.model) for each in runs])
    return lambda: next(copies)


# What is compared.


def compared(plan: Plan, every: Any, chosen: dict[tuple[str, str], list[Choice]], times: float, seeds: tuple[int, ...]) -> Any:
    """A tidy frame of what is chosen, trained for so many times its passes; `passes` are those at a β."""
    rows = []
    for (name, split), each_choice in chosen.items():
        for choice in (times_as_long(each, times) for each in each_choice):
            mine = np.logical_and.reduce([every[column] == value for column, value in choice._asdict().items()])
            for each in every[mine & every["seed"].isin(seeds)].to_dict("records"):
                place = {"objective": name, "split": split, "n": each[f"{split} n"], "stderr": None}
                place |= {"beta": each["beta"], "seed": each["seed"], "passes": each["own passes"], "lr": each["lr"]}
                rows += [
                    place | {"quantity": quantity, "value": each[f"{split} {quantity}"]}
                    for quantity in ("loss", "rate", "distortion")
                ]
    return results.frame_of(rows)


def passes_of(frame: Any) -> Any:
    """The passes of each curve in all: a number for each split and objective."""
    once = frame.drop_duplicates(["split", "objective", "beta"])
    return once.groupby(["split", "objective"], sort=False)["passes"].sum()


def beside(frame: Any, many: Any) -> Any:
    """The frame with the models of many β beside it: for `multi_beta.regrets`, against the fresh ones of this frame.

    - `many`: the frame of `studies.multi_beta` for the same data; of it, what has the same βs and seeds.
    """
    same = many["beta"].isin(frame["beta"].unique()) & many["seed"].isin(frame["seed"].unique())
    both = pd.concat([frame, many[same & (many["objective"] != FRESH)]], ignore_index=True)
    return both.drop(columns=["study", "dataset"], errors="ignore")


def claims_of(frame: Any) -> Any:
    """Mean regrets of all but the fresh ones, by split and objective."""
    each = multi_beta.regrets(frame)
    return results.over_seeds(each[each["beta"] == "mean"], by=["split", "objective"])


def sides(frame: Any) -> Any:
    """What may be claimed to be on one side of zero: a row for each split, objective, β, quantity and seed.

    The mean regrets; those of chains of as many steps at each β, on training images; by how much the mean of a chain from the
    largest β is above that of one from the smallest of as many steps; and at the compute of one by how much that of a chain is
    above that of fresh models.
    """
    each = multi_beta.regrets(frame)
    is_mean, own = each["beta"] == "mean", each["objective"].isin([UP, DOWN]) & (each["split"] == "train")
    means: Any = each[is_mean]

    def above(kind: str, others: list[str], quantity: str) -> Any:
        return results.paired(means[means["objective"].isin([kind, *others])], objective=kind).assign(quantity=quantity)

    return pd.concat(
        [
            means,
            each[~is_mean & own],
            *(above(UP + which, [DOWN + which], DIRECTION) for which in ("", ONE)),
            above(FRESH + ONE, [UP + ONE, DOWN + ONE], BEGUN),
        ],
        ignore_index=True,
    )


def crossed(plan: Plan, frame: Any, name: str) -> tuple[Any, convergence.Check]:
    """The models of a curve, each under D + βR of every other, on the training images: by how much each is behind the own."""
    mine = frame[(frame["objective"] == name) & (frame["split"] == "train")]
    return convergence.cross_table(convergence.under_others(mine, plan.betas), plan.largest_error)


def _checks(plan: Plan, frames: dict[int, Any]) -> list[convergence.Check]:
    """The errors of what is claimed, and its sides after the plan's passes and the others, of what is clear of zero."""
    keys = multi_beta.NAMED
    each = {passes: sides(frame) for passes, frame in frames.items()}
    clear = convergence.clear(each[plan.passes], keys)[keys].drop_duplicates()
    clear = convergence.without(clear, keys, plan.unclaimed)
    both: Any = pd.concat([rows.merge(clear).assign(passes=passes) for passes, rows in each.items()])
    one_side = convergence.same_side(both[both["seed"].isin(plan.seeds[: plan.again])], keys[1:])
    claims = {f"{name}, {split}": claim for (split, name), claim in claims_of(frames[plan.passes]).items()}
    return [convergence.errors(claims, plan.largest_error), convergence.not_claimed(one_side, plan.unclaimed)]


def _said(plan: Plan, frame: Any) -> str:
    claims, passes, said = claims_of(frame), passes_of(frame), []
    for split in searching.CHOSEN_BY:
        each = "; ".join(f"{name} {claim:+} in {passes[split, name]} passes" for name, claim in claims[split].items())
        said.append(f"{each} ({split}, fresh ones in {passes[split, FRESH]})")
    behind = {}
    for name in NAMES:
        table = crossed(plan, frame, name)[0]
        behind[name] = f"{int((table['value'] + 2 * table['stderr'] < 0).sum())} of {len(table)} ({name})"
    return (
        f"Regret of D + βR against one fresh β-VAE for each β, in nats, means over βs: {'. '.join(said)}. On training images "
        f"models behind another of their curve under their own β by more than the errors: {', '.join(behind.values())}."
    )
