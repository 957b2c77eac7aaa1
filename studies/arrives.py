"""Pictures that sharpen as their codes arrive: an embedded ladder of the model that runs in pages.

The model of many β of `studies.page_model` is taken as it is. Its views at falling β are a ladder of codes, drawn together by
channel and sent from coarse to fine, each given the one before (`samplers.Chain`). The study fits the densities that the codes
are sent under, measures how many nats have arrived after each code and what distortion is left, on all test images and on a few
that a page shows, and records what these look like. Nothing is trained, so its seeds are those of draws and fits.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbvae import checks, estimators, results, samplers
from nbvae.results import Estimate
from studies import convergence, page_model
from studies.lab import Lab
from studies.plan import Plan as Common
from studies.plan import accept_ladder, load
from studies.record import Record, read

QUESTION = "What does an image look like after each code of a ladder has arrived, and how many nats is that?"
CHAPTER = "07_alignment"
DATASETS = ("mnist",)
NATS, ALONE, DISTORTION, BEGINNING = "nats so far", "nats of the code alone", "distortion", "distortion without a code"
RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `ladder`: βs from coarse to fine.
    - `model`: "recorded" for the page's model as it is recorded, or the plan of `studies.page_model` that is trained now.
    - `components`: Gaussians in each mixture.
    - `draws`: pairs of codes for each training image, which the densities are fitted to; they are also fitted to twice as many.
    - `measured`: draws for each test image; `tested`: how many of these are measured, at most.
    - `shown`: how many test images a page shows; `pictures`: draws of each; `priced`: draws that its nats are a mean over.
    - `largest_error`: the most that more pairs may move an overhead, a share, and that its standard error may be, unless it is
      at most a quarter of the overhead.
    """

    dataset: str = "mnist"
    images: int | None = 10_000
    ladder: tuple[float, ...] = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
    model: str = RECORDED
    components: int = 10
    draws: int = 2
    measured: int = 2
    tested: int = 10_000
    shown: int = 10
    pictures: int = 3
    priced: int = 200
    largest_error: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("components", "draws", "measured", "tested", "shown", "pictures", "priced"):
            checks.whole(name, getattr(self, name))
        checks.choice("model", self.model, (RECORDED, "full", "quick", "smoke"))
        accept_ladder(self.ladder, page_model.Plan.low, page_model.Plan.high)
        if len(self.seeds) < 2:
            raise ValueError("errors need at least two seeds")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if budget == "quick":
        return full.changed(model="quick", images=2000, components=5, tested=1000, seeds=(0, 1), ladder=full.ladder[::2])
    if budget == "smoke":
        few = {"images": 200, "components": 1, "draws": 1, "measured": 1, "tested": 50, "shown": 2, "pictures": 2, "priced": 2}
        return full.changed(model="smoke", ladder=(2.0, 0.5), seeds=(0, 1), **few)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    cell = {name: value for name, value in plan.settings.items() if name != "largest_error"}
    [found] = lab.map(send, [cell], "the ladder of the page's model")
    frame = pd.DataFrame(found["rows"])
    own: Any = frame[frame["draws"] == plan.draws].drop(columns="draws")
    last: Any = results.over_seeds(own[own["beta"] == plan.ladder[-1]], by="quantity")
    over = 100 * (last[NATS].value / last[ALONE].value - 1)
    said = f"The whole ladder costs {last[NATS]} nats, its last code alone {last[ALONE]}: {over:.1f} % more."
    arrays = {name: value for name, value in found.items() if name != "rows"}
    return Record.of(__name__, plan, lab, own.to_dict("records"), checks=_checks(plan, frame), said=said, arrays=arrays)


def send(
    dataset: str,
    binarize: str | None,
    images: int | None,
    model: str,
    ladder: list[float],
    components: int,
    draws: int,
    measured: int,
    tested: int,
    shown: int,
    pictures: int,
    priced: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The ladder's nats and distortions on test images, for both numbers of pairs and each seed; and the pictures of a few."""
    ds, many = load(dataset, binarize, images), one_model(dataset, binarize, model, store, device)
    views = [many.at(beta) for beta in ladder]
    test, place = ds.test[:tested], {"objective": "one model", "split": "test"}
    left = [estimators.evaluate(view, test, n_samples=measured).distortion for view in views]
    rows = []
    for pairs in (draws, 2 * draws):
        for seed in seeds:
            how: Any = {"n_components": components, "draws": pairs, "seed": seed}
            arrived = samplers.Chain(views, ds.train, coupling="channel", **how).rates(test, measured, seed).cumsum(0).tolist()
            for beta, view, nats, distortion in zip(ladder, views, arrived, left, strict=True):
                alone = samplers.Mixture(view, ds.train, **how).rate(test, measured, seed)
                for name, value in ((NATS, nats), (ALONE, alone), (DISTORTION, distortion)):
                    row = results.row_of(name, Estimate(value, n=len(test)), beta=beta, seed=seed, draws=pairs, **place)
                    rows.append(row)
    chain = samplers.Chain(views, ds.train, n_components=components, draws=draws, seed=seeds[0], coupling="channel")
    chosen = page_model.of_each_label(ds, shown)
    x = torch.tensor(np.unpackbits(chosen["images"], 1, ds.train[0].numel()), dtype=torch.float32)
    found = pictured(chain, x.view(-1, *ds.shape), ds.train.mean(0), pictures, priced)
    blank = without_a_code(test, ds.train.mean(0)).mean().item()
    rows += [
        results.row_of(BEGINNING, Estimate(blank, n=len(test)), beta=None, seed=seed, draws=draws, **place) for seed in seeds
    ]
    return {"rows": rows, "model": fingerprint(many)} | found | chosen


def pictured(chain: samplers.Chain, x: Tensor, mean: Tensor, pictures: int, priced: int) -> dict[str, np.ndarray]:
    """What a receiver has of a few images after each code of a ladder, and before the first.

    - `chain`: the ladder.
    - `x`: the images (batch, *shape), of pixels 0 and 1.
    - `mean`: the mean of the training images, (*shape): what is shown before the first code.
    - `pictures`: how many draws of its codes are decoded, for each image.
    - `priced`: how many draws the nats and the distortion of an image are means over.

    Returns "pictures" (batch, draws, codes + 1, pixels), shares of white from 0 to 255; "nats", what has arrived, and
    "distortion", both (batch, codes + 1).

    >>> from nbvae import data, models
    >>> digits = data.load("digits")
    >>> many = models.MultiBetaVAE(digits.shape, 2, hidden=(8,))
    >>> chain = samplers.Chain(many, digits.train, betas=[1.0, 10.0], n_components=1, coupling="channel")
    >>> pictured(chain, digits.test[:3], digits.train.mean(0), 2, 5)["pictures"].shape
    (3, 2, 3, 64)
    """
    drawn = []
    for seed in range(pictures):
        codes = chain.encode(x, seed)
        with torch.no_grad():
            means = [view.likelihood(z).mean.flatten(1) for view, z in zip(chain.views, codes, strict=True)]
        drawn.append(torch.stack([mean.flatten().expand_as(means[0]), *means], 1))
    nats = [[0.0, *chain.rates(each, priced).cumsum(0).tolist()] for each in x.split(1)]
    first = without_a_code(x, mean)
    left = [
        [blank, *(estimators.evaluate(view, each, n_samples=priced).distortion for view in chain.views)]
        for blank, each in zip(first.tolist(), x.split(1), strict=True)
    ]
    return {
        "pictures": (255 * torch.stack(drawn, 1)).round().byte().numpy(),
        "nats": np.array(nats, "float32"),
        "distortion": np.array(left, "float32"),
    }


def in_page(record: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `nbvae.notebook.live("arrives", …)` is given: arrays, and settings.

    - `record`: of this study.

    The settings are the side of an image in pixels, the "curve" of nats so far and distortion, before the first code and after
    each, and those of each code "alone", all means over test images and seeds.

    >>> import studies
    >>> arrays, told = in_page(studies.load("arrives", "digits", budget="smoke", lab=Lab(device="cpu")))
    >>> arrays["pictures"].shape, told["side"], len(told["curve"]), len(told["alone"])
    ((2, 2, 3, 64), 8, 3, 2)
    """
    kept = {name: value for name, value in record.arrays.items() if name != "model"}
    mean: Any = record.frame.groupby(["quantity", "beta"], dropna=False)["value"].mean()
    ladder = record.plan["ladder"]
    curve = [{"nats": 0.0, "distortion": float(mean[BEGINNING].iloc[0])}]
    curve += [{"nats": float(mean[NATS, beta]), "distortion": float(mean[DISTORTION, beta])} for beta in ladder]
    alone = [{"nats": float(mean[ALONE, beta]), "distortion": float(mean[DISTORTION, beta])} for beta in ladder]
    return kept, {"side": math.isqrt(kept["pictures"].shape[-1]), "curve": curve, "alone": alone}


def without_a_code(x: Tensor, mean: Tensor) -> Tensor:
    """−log p(x), (batch,), in nats, under independent pixels.

    - `x`: the images (batch, *shape), of pixels 0 and 1.
    - `mean`: the pixels' means, (*shape).

    >>> without_a_code(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]))  # 2 log 2
    tensor([1.3863])
    """
    mean = mean.flatten().clamp(1e-4, 1 - 1e-4)
    return -(x.flatten(1) * mean.log() + (1 - x.flatten(1)) * (1 - mean).log()).sum(1)


def one_model(dataset: str, binarize: str | None, model: str, store: str | None, device: str) -> Any:
    """The page's model of a data set, as it is recorded, or trained now by a plan of `studies.page_model`.

    - `dataset`, `binarize`: as for `studies.plan.load`.
    - `model`: "recorded", or the plan: "full", "quick" or "smoke".
    - `store`, `device`: of the training.

    Raises `ValueError` where it is to be read and there is no record.
    """
    shape = load(dataset, binarize).shape
    if model == RECORDED:
        found = read("page_model", dataset)
        if found is None:
            raise ValueError(f"there is no recorded model of {dataset}: python -m studies page_model --record")
        return page_model.unpacked(found.arrays, shape, (found.plan["low"], found.plan["high"]))
    how = page_model.plan(dataset, model).changed(binarize=binarize)
    trained = page_model.train(**page_model.settings(how), passes=how.passes, seed=how.seeds[0], store=store, device=device)
    return page_model.unpacked(trained, shape, (how.low, how.high))


def fingerprint(model: Any) -> np.ndarray:
    """SHA-256 of a model's weights, as 32 bytes: which model a record is of.

    >>> fingerprint(torch.nn.Linear(2, 1)).shape
    (32,)
    """
    content = b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
    return np.frombuffer(hashlib.sha256(content).digest(), "uint8")


def overheads(frame: Any) -> Any:
    """What the ladder has cost after each code more than this code alone, as a share of that, for each β, seed and `draws`.

    - `frame`: the rows of both numbers of draws.
    """
    wide = frame[frame["quantity"].isin([NATS, ALONE])].pivot(
        index=["beta", "seed", "draws"], columns="quantity", values="value"
    )
    return (wide[NATS] / wide[ALONE] - 1).rename("value").reset_index().assign(quantity="overhead")


def _checks(plan: Plan, frame: pd.DataFrame) -> list[convergence.Check]:
    """Twice the pairs of codes against the overheads, as the study of ladders claims them; and their errors."""
    shares = overheads(frame)
    means: Any = results.over_seeds(shares[shares["draws"] == plan.draws].drop(columns="draws"), by="beta")
    limits = {beta: convergence.allowed(each, plan.largest_error) for beta, each in means.items()}
    both = shares.rename(columns={"draws": "passes"}).assign(allowed=shares["beta"].map(limits))
    moved = convergence.twice(both, ["beta"])
    nats: Any = frame[frame["quantity"] == NATS].pivot_table(index="beta", columns="draws", values="value")
    lower = (1 - nats[2 * plan.draws] / nats[plan.draws]).max()
    return [
        replace(
            moved,
            name=f"{2 * plan.draws} pairs of codes an image move no overhead that is claimed after {plan.draws}",
            found=f"{moved.found}; the nats themselves fall by {100 * lower:.1f} % at most",
        ),
        convergence.errors({f"the overhead at β = {beta:g}": each for beta, each in means.items()}, plan.largest_error),
    ]
