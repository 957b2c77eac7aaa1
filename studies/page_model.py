"""The model that pages run: one of many β on MNIST, its weights in eight bits, and what rounding them costs.

A reader draws a digit, moves β, and sees what the model makes of it, in the page itself. For that the weights have to be small:
each row of a matrix is kept as whole numbers from −127 to 127 and one factor. The study trains the model, measures it at many
β with its weights as they were trained and as they are kept, and records the latter.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from nbvae import checks, estimators, models, objectives, results, training
from studies import convergence
from studies.lab import Lab, sweep
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "Is one model of many β, its weights in eight bits, good enough to run in a page?"
CHAPTER = "05_one_model_many_betas"
DATASETS = ("mnist",)
EXACT, KEPT = "as trained", "in eight bits"
WHOLE = 127


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `betas`: where the model is measured, from the smallest to the largest.
    - `crossed`: those of them whose views are measured under the objectives of the others.
    - `low`, `high`: the range of β that it is trained for.
    - `power`: of β in the weights of its loss, `objectives.MultiBeta`.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the model and its training, under a one-cycle schedule.
    - `passes`: over the training images.
    - `again`, `against`: how many of the seeds are also trained for `against` times as many passes, to compare with.
    - `measured`: how many images of a split are measured, at most.
    - `shown`: how many test images are recorded for readers to begin with.
    - `largest_error`: the most that the standard error of a difference may be, in nats.
    """

    dataset: str = "mnist"
    betas: tuple[float, ...] = (0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0, 25.0, 40.0)
    crossed: tuple[float, ...] = (0.1, 0.4, 1.6, 6.3, 25.0)
    low: float = 0.1
    high: float = 40.0
    power: float = 0.25
    latent_dim: int = 16
    hidden: tuple[int, ...] = (256, 256)
    batch: int = 100
    lr: float = 2e-3
    passes: int = 60
    again: int = 3
    against: float = 0.5
    measured: int = 10_000
    shown: int = 20
    largest_error: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) < 2 or list(self.betas) != sorted(set(self.betas)):
            raise ValueError(f"betas must be at least two numbers, from the smallest on; got {checks.short(self.betas)}")
        if len(self.crossed) < 2 or not set(self.crossed) <= set(self.betas):
            raise ValueError(f"crossed must be at least two of betas; got {checks.short(self.crossed)}")
        if not 0 < self.low <= self.betas[0] or self.high < self.betas[-1] or self.low == self.high:
            raise ValueError("low and high must have all of betas between them")
        convergence.accept_against(self.passes, self.against)
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if budget == "quick":
        return full.changed(passes=2, against=2.0, images=5000, measured=2000, seeds=(0, 1), again=2).stretched("passes")
    if budget == "smoke":
        few = {"betas": (0.3, 3.0), "crossed": (0.3, 3.0), "hidden": (16,), "latent_dim": 4}
        return full.changed(**few, passes=1, against=2.0, images=300, measured=200, shown=2, seeds=(0, 1), again=2)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    frame, first = trained(plan, lab, train, "the model of the page")
    own: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(
        __name__,
        plan,
        lab,
        own.to_dict("records"),
        checks=converged(plan, frame),
        said=f"{cost_said(own)}.",
        arrays=first | of_each_label(plan.data(), plan.shown),
    )


def trained(plan: Plan, lab: Lab, function: Any, what: str, **more: Any) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """All trainings of a plan: their rows, with a column `passes`, and the weights that the first seed's page runs.

    - `function`: `train`, or one that takes the same settings and those in `more`.
    - `what`: what it trains, in words, for the bar.
    """
    common = settings(plan) | more
    every = convergence.trained(plan)
    cells = [{"passes": passes, "seed": seed, **common} for passes, seeds in every.items() for seed in seeds]
    found = lab.map(function, cells, what)
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    first = next(
        each for each, cell in zip(found, cells, strict=True) if (cell["passes"], cell["seed"]) == (plan.passes, plan.seeds[0])
    )
    return frame, {name: first[name] for name in first if name != "rows"}


def settings(plan: Plan) -> dict[str, Any]:
    """What `train` is told by a plan, but for the passes and the seed."""
    names = (
        "dataset",
        "binarize",
        "images",
        "betas",
        "low",
        "high",
        "power",
        "latent_dim",
        "hidden",
        "batch",
        "lr",
        "measured",
    )
    return {name: plan.settings[name] for name in names}


def cost_said(own: pd.DataFrame) -> str:
    """What eight bits cost at most, in words, from the rows of a plan's trainings."""
    rounded = rounding(own)
    worst = rounded.loc[rounded["value"].map(lambda each: each.value).idxmax()]
    return f"Keeping the weights in eight bits costs {worst['value']:+} nats of D + βR at most, at β = {worst['beta']:g}"


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    betas: list[float],
    low: float,
    high: float,
    power: float,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    measured: int,
    passes: int,
    seed: int,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """One training: rate and distortion at each β with both kinds of weights, and the weights in eight bits."""
    ds = load(dataset, binarize, images)
    if not ds.is_binary:
        raise ValueError(f"the model of the page has a Bernoulli decoder, for pixels of 0 and 1; {ds.name} has others")
    config = training.TrainConfig(passes, batch, lr, "one_cycle", device=device)
    make = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden, "beta_range": (low, high)}
    [run] = sweep(
        lambda: models.MultiBetaVAE(**make),
        ds,
        objectives=[objectives.MultiBeta(power)],
        seeds=[seed],
        config=config,
        store=store,
    )
    kept = packed(run.model)
    rows = measure(run.model, ds, betas, measured, EXACT, seed)
    rows += measure(unpacked(kept, ds.shape, (low, high)), ds, betas, measured, KEPT, seed)
    return {"rows": rows} | kept


def measure(model: Any, ds: Any, betas: list[float], measured: int, objective: str, seed: int) -> list[dict[str, Any]]:
    """Rows: loss, rate and distortion at each β on training and test images, with the same draws for all models."""
    rows = []
    for split, x in (("train", ds.train[:measured]), ("test", ds.test[:measured])):
        for beta in betas:
            point = estimators.evaluate(model.at(beta), x, beta, n_samples=1)
            values = {"loss": point.loss(), "rate": point.rate, "distortion": point.distortion}
            place = {"objective": objective, "beta": beta, "seed": seed, "split": split, "n": len(x), "stderr": None}
            rows += [place | {"quantity": name, "value": value} for name, value in values.items()]
    return rows


def packed(model: models.MultiBetaVAE) -> dict[str, np.ndarray]:
    """The weights by their names: of a matrix whole numbers (rows, columns) in eight bits, and as "NAME scale" a factor a row.

    Vectors are kept as they are, in float32.

    >>> kept = packed(models.MultiBetaVAE((4,), 2, hidden=(3,)))
    >>> kept["encoder.layers.0.weight"].dtype, kept["encoder.layers.0.weight scale"].shape
    (dtype('int8'), (3,))
    """
    kept = {}
    for name, value in model.state_dict().items():
        exact = value.detach().cpu().numpy().astype("float32")
        if exact.ndim != 2:
            kept[name] = exact
            continue
        scale = np.maximum(np.abs(exact).max(1), np.finfo("float32").tiny) / np.float32(WHOLE)
        kept[name], kept[f"{name} scale"] = np.rint(exact / scale[:, None]).astype("int8"), scale
    return kept


def unpacked(
    kept: Any, shape: tuple[int, ...] = (1, 28, 28), beta_range: tuple[float, float] = (0.1, 40.0)
) -> models.MultiBetaVAE:
    """The model whose weights are `packed` ones, among other arrays: what a page runs.

    - `kept`: arrays by their names, such as those of the study's record.
    - `shape`: of an image.
    - `beta_range`: of the model.

    >>> model = models.MultiBetaVAE((4,), 2, hidden=(3,))
    >>> again = unpacked(packed(model), (4,), model.beta_range)
    >>> torch.allclose(again.encoder.layers[0].weight, model.encoder.layers[0].weight, atol=0.01)
    True
    """
    hidden = [
        len(kept[f"encoder.layers.{index}.weight"]) for index in range(100) if f"encoder.layers.{index + 1}.weight" in kept
    ]
    last = kept[f"encoder.layers.{len(hidden)}.weight"]
    model = models.MultiBetaVAE(shape, len(last) // 2, hidden=hidden, beta_range=beta_range)
    state = {}
    for name in model.state_dict():
        value = kept[name].astype("float32")
        state[name] = torch.from_numpy(value * kept[f"{name} scale"][:, None] if value.ndim == 2 else value)
    model.load_state_dict(state)
    return model


def rounding(frame: Any) -> Any:
    """What eight bits cost: by how much D + βR on test images is larger than with the weights as trained, for each β."""
    losses = frame[(frame["quantity"] == "loss") & (frame["split"] == "test")]
    each: Any = results.paired(losses, objective=EXACT)
    return results.over_seeds(each, by="beta").rename("value").reset_index()


def converged(plan: Plan, frame: Any) -> list[convergence.Check]:
    """The views under each other's objectives; and the other number of passes against what eight bits cost."""
    own = frame[(frame["passes"] == plan.passes) & (frame["objective"] == KEPT) & (frame["split"] == "train")]
    losses = convergence.under_others(own[own["beta"].isin(plan.crossed)], plan.crossed)
    both = frame[(frame["quantity"] == "loss") & (frame["split"] == "test")]
    costs: Any = pd.concat(
        [
            results.paired(each.drop(columns="passes"), objective=EXACT).assign(passes=passes)
            for passes, each in both.groupby("passes")
        ]
    )
    some = costs[costs["seed"].isin(plan.seeds[: plan.again])].assign(allowed=plan.largest_error)
    claims = {
        f"the cost of eight bits at β = {row['beta']:g}": row["value"]
        for _, row in rounding(frame[frame["passes"] == plan.passes].drop(columns="passes")).iterrows()
    }
    return [
        convergence.cross_table(losses, plan.largest_error)[1],
        convergence.errors(claims, plan.largest_error),
        convergence.twice(some, ["beta"]),
    ]


def of_each_label(ds: Any, shown: int) -> dict[str, np.ndarray]:
    """Test images to begin with, as many of each label as there is room for, in the order of their labels; as bits.

    - `ds`: a data set of pixels of 0 and 1.
    - `shown`: how many images, at most.

    Returns "images", a row of bytes each, and "labels" where there are any.

    >>> from nbvae import data
    >>> of_each_label(data.load("digits"), 10)["labels"]
    array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=uint8)
    """
    images, labels = ds.test.flatten(1).numpy() > 0.5, ds.test_labels
    if labels is None:
        return {"images": np.packbits(images[:shown], 1)}
    kinds = np.unique(labels.numpy())
    each = max(1, shown // len(kinds))
    chosen = np.concatenate([np.flatnonzero(labels.numpy() == kind)[:each] for kind in kinds])[:shown]
    return {"images": np.packbits(images[chosen], 1), "labels": labels.numpy()[chosen].astype("uint8")}
