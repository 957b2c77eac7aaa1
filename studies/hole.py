"""Holes of the prior in a model that a page runs: two latents, many β, weights in eight bits.

A draw of the prior is in a hole where q(z), the aggregated posterior of training images, is much smaller than p(z). With two
latents the whole plane of codes can be shown, and the page decodes whatever point a reader chooses. The study trains the model,
measures at each β how much of the prior is in holes, and records the weights, codes of test images, and log q(z) on a grid.

Finitely many images know q(z) no finer than their posteriors lie apart: where these are narrow, gaps between neighbours look
like holes, the more the fewer images there are. So q(z) is blurred here, by a Gaussian that is narrow against the prior.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbvae import checks, posterior, results
from nbvae.results import Estimate
from studies import convergence, page_model
from studies.lab import Lab
from studies.plan import load
from studies.record import Record

QUESTION = "How much of the prior is in holes, in a model of two latents that runs in a page?"
CHAPTER = "06_aggregated_posterior"
DATASETS = ("mnist",)
SHARE, OF_CODES, BOUND = "share in holes", "share of codes in holes", "marginal_kl_held_out"
LOWEST, STEP = -20.0, 1 / 12  # of the grid, nats: log q(z) is kept as LOWEST + STEP times 0 to 255


@dataclass(frozen=True, kw_only=True)
class Plan(page_model.Plan):
    """Settings of the study: those of the page's model, and some more.

    - `reference`: of how many training images q(z) is the aggregated posterior, at most.
    - `blur`: the standard deviation of the Gaussian that q(z) is blurred by, in each latent.
    - `draws`: of the prior, the share of which in holes is measured.
    - `thin`: a point is in a hole where q(z) is less than this part of p(z).
    - `reach`, `nodes`: log q(z) is kept on a grid of `nodes` by `nodes` points, from −reach to reach.
    - `largest_misjudged`: the most of the prior's draws for which the grid may say otherwise than q(z) itself.
    """

    betas: tuple[float, ...] = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0, 25.0)
    crossed: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    power: float = 0.5
    latent_dim: int = 2
    hidden: tuple[int, ...] = (128, 128)
    lr: float = 4e-3
    passes: int = 16
    measured: int = 5000
    shown: int = 300
    reference: int = 20_000
    draws: int = 2000
    blur: float = 0.1
    thin: float = 0.25
    reach: float = 3.5
    nodes: int = 85
    largest_misjudged: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reference", "draws", "shown"):
            checks.whole(name, getattr(self, name), minimum=2)
        checks.whole("nodes", self.nodes, minimum=2)
        checks.positive("reach", self.reach)
        checks.not_negative("blur", self.blur)
        if self.latent_dim != 2:
            raise ValueError(f"latent_dim must be 2, for the page shows the plane of codes; got {self.latent_dim}")
        if not 0 < self.thin < 1:
            raise ValueError(f"thin must be between 0 and 1, got {self.thin:g}")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if budget == "quick":
        few = {"images": 5000, "measured": 2000, "reference": 5000, "seeds": (0, 1), "again": 2}
        return full.changed(passes=4, against=2.0, **few).stretched("passes")
    if budget == "smoke":
        few = {"betas": (0.3, 3.0), "crossed": (0.3, 3.0), "hidden": (16,), "nodes": 9, "draws": 50, "shown": 4}
        few |= {"images": 300, "measured": 200, "reference": 200, "seeds": (0, 1), "again": 2}
        return full.changed(passes=1, against=2.0, **few)
    return full


def run(plan: Plan, lab: Lab) -> Record:
    more = {name: plan.settings[name] for name in ("reference", "draws", "blur", "thin")}
    frame, first = page_model.trained(plan, lab, train, "models of two latents", **more)
    own: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    plane, judged = _plane(plan, first)
    shares: Any = results.over_seeds(own[own["quantity"] == SHARE], by="beta")
    ends = [f"{100 * shares[beta].value:.0f} % at β = {beta:g}" for beta in (plan.betas[0], plan.betas[-1])]
    return Record.of(
        __name__,
        plan,
        lab,
        own.to_dict("records"),
        checks=[*page_model.converged(plan, frame), *_checks(plan, frame), judged],
        said=f"Of the prior {' and '.join(ends)} is in holes. {page_model.cost_said(own)}.",
        arrays=first | plane,
    )


def train(
    dataset: str,
    binarize: str | None,
    images: int | None,
    betas: list[float],
    low: float,
    high: float,
    measured: int,
    seed: int,
    reference: int,
    draws: int,
    blur: float,
    thin: float,
    **settings: Any,
) -> dict[str, Any]:
    """One training, as `page_model.train`, and what of the prior is in holes of the model whose weights are in eight bits."""
    common: Any = {"dataset": dataset, "binarize": binarize, "images": images}
    found = page_model.train(**common, betas=betas, low=low, high=high, measured=measured, seed=seed, **settings)
    ds = load(**common)
    model = page_model.unpacked(found, ds.shape, (low, high))
    for beta in betas:
        place = {"objective": page_model.KEPT, "beta": beta, "seed": seed, "split": "test", "stderr": None}
        for name, value in holes(model.at(beta), ds.train[:reference], ds.test[:measured], draws, blur, thin).items():
            found["rows"].append(place | {"quantity": name, "value": value.value, "n": value.n})
    return found


def holes(
    model: Any, x: Tensor, test: Tensor, draws: int = 2000, blur: float = 0.1, thin: float = 0.25, seed: int = 0
) -> dict[str, Estimate]:
    """How much of the prior, and of the codes of test images, is where q(z) is less than a part of p(z).

    - `model`: one with a diagonal Gaussian posterior.
    - `x`: images (N, *shape) whose aggregated posterior q(z) is.
    - `test`: other images (M, *shape); one code of each is drawn.
    - `draws`: of the prior.
    - `blur`: the standard deviation that q(z) is blurred by, >= 0.
    - `thin`: the part of p(z).
    - `seed`: of all draws.

    Also E log q(z) − log p(z) over the codes of `test`, in nats: what q(z) would save them in the prior's place, which is in
    expectation a lower bound on the marginal KL.

    >>> from nbvae import data, models
    >>> digits = data.load("digits")
    >>> found = holes(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, digits.test)
    >>> found[SHARE].value < 0.5, found[SHARE].n
    (True, 2000)
    """
    generator = torch.Generator().manual_seed(seed)
    code = blurred(posterior.encode(model, x), blur)
    mean, std = (each.double() for each in posterior.encode(model, test))
    of_codes = mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    of_prior = torch.randn(draws, mean.shape[1], generator=generator, dtype=mean.dtype)
    ratios = {name: ratio(z, *code) for name, z in ((SHARE, of_prior), (OF_CODES, of_codes))}
    found = {name: Estimate.of((each < np.log(thin)).double().numpy(), "draws") for name, each in ratios.items()}
    return found | {BOUND: Estimate.of(ratios[OF_CODES].numpy(), "draws")}


def ratio(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log q(z) − log p(z) of points, (M,), in nats.

    - `z`: the points (M, k).
    - `mean`, `std`: of the posteriors that q(z) is the mean of, (N, k) each.

    >>> ratio(torch.zeros(1, 2), torch.zeros(5, 2), torch.ones(5, 2)).abs().item() < 1e-6
    True
    """
    return posterior.log_density(z, mean, std) - log_prior(z)


def blurred(code: Any, blur: float) -> tuple[Tensor, Tensor]:
    """Means and deviations (N, k) in float64, of posteriors that are blurred by a Gaussian.

    - `code`: their means and deviations, (N, k) each.
    - `blur`: the Gaussian's deviation.

    >>> blurred((torch.zeros(1, 2), torch.full((1, 2), 0.3)), 0.4)[1]
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    mean, std = (each.double() for each in code)
    return mean, (std.square() + blur**2).sqrt()


def log_prior(z: Tensor) -> Tensor:
    """log p(z) of points z (M, k), (M,), in nats.

    >>> log_prior(torch.zeros(1, 2))  # −log 2π
    tensor([-1.8379])
    """
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)


def in_page(record: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `nbvae.notebook.live("hole", …)` is given: arrays, and settings.

    - `record`: of this study.

    The matrices of the encoder are left out, since codes are recorded.

    >>> import studies
    >>> arrays, told = in_page(studies.load("hole", "digits", budget="smoke", lab=Lab(device="cpu")))
    >>> arrays["codes"].shape, told["side"], told["betas"]
    ((2, 4, 2), 8, [0.3, 3.0])
    """
    kept = {
        name: value
        for name, value in record.arrays.items()
        if not (name.startswith("encoder") and "weight" in name.split(".")[-1])
    }
    told = {name: record.plan[name] for name in ("low", "high", "betas", "reach", "thin")}
    last = max(
        (name for name in kept if name.startswith("decoder") and name.endswith("bias")),
        key=lambda name: int(name.split(".")[2]),
    )
    return kept, told | {"side": math.isqrt(len(kept[last])), "lowest": LOWEST, "step": STEP}


def kept_density(log_q: np.ndarray) -> np.ndarray:
    """log q(z), in nats, in eight bits: what is below `LOWEST` is that.

    >>> kept_density(np.array([-99.0, -20.0, -19.5, 1.0]))
    array([  0,   0,   6, 252], dtype=uint8)
    """
    return np.rint((np.asarray(log_q) - LOWEST) / STEP).clip(0, 255).astype("uint8")


def at(density: np.ndarray, z: np.ndarray, reach: float) -> np.ndarray:
    """log q(z) at points, (M,), in nats, from the kept grid: as the page has it.

    - `density`: the grid in eight bits (nodes, nodes); a row has one value of the second latent.
    - `z`: the points (M, 2).
    - `reach`: the grid is from −reach to reach.

    Between the nodes log q(z) is bilinear; beyond the grid it is what it is on the edge.

    >>> at(np.array([[0, 12], [0, 12]], "uint8"), np.array([[0.0, 0.3]]), reach=1.0)
    array([-19.5])
    """
    last = len(density) - 1
    place = ((np.asarray(z, "float64") + reach) / (2 * reach) * last).clip(0, last)
    low = np.minimum(place.astype(int), last - 1)
    (column, row), (right, up) = low.T, (place - low).T
    values = LOWEST + STEP * density.astype("float64")
    below = (1 - right) * values[row, column] + right * values[row, column + 1]
    above = (1 - right) * values[row + 1, column] + right * values[row + 1, column + 1]
    return (1 - up) * below + up * above


def _plane(plan: Plan, first: Any) -> tuple[dict[str, np.ndarray], convergence.Check]:
    """Codes of test images and log q(z) on the grid, for each β; and whether the grid knows the holes of q(z)."""
    ds = plan.data()
    model = page_model.unpacked(first, ds.shape, (plan.low, plan.high))
    generator = torch.Generator().manual_seed(0)
    test = ds.test[: plan.shown]
    noise = torch.randn(len(test), 2, generator=generator)  # the same for all β: codes move as little as they can
    z = torch.randn(plan.draws, 2, generator=generator, dtype=torch.float64)
    axis = torch.linspace(-plan.reach, plan.reach, plan.nodes, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    codes, densities, wrong = [], [], []
    for beta in plan.betas:
        view = model.at(beta)
        mean, std = posterior.encode(view, test)
        codes.append((mean + std * noise).numpy())
        code = blurred(posterior.encode(view, ds.train[: plan.reference]), plan.blur)
        density = kept_density(posterior.log_density(grid, *code).view(plan.nodes, plan.nodes).numpy())
        densities.append(density)
        exact = ratio(z, *code).numpy() < np.log(plan.thin)
        wrong.append(float(np.mean(exact != (at(density, z.numpy(), plan.reach) - log_prior(z).numpy() < np.log(plan.thin)))))
    worst = int(np.argmax(wrong))
    check = convergence.Check(
        "the grid of the page knows the holes",
        wrong[worst] <= plan.largest_misjudged,
        f"at most {100 * wrong[worst]:.1f} % of the prior's draws are misjudged, at β = {plan.betas[worst]:g}; "
        f"{100 * plan.largest_misjudged:g} % allowed",
    )
    arrays = {"codes": np.stack(codes), "density": np.stack(densities)}
    if ds.test_labels is not None:
        arrays["labels"] = ds.test_labels[: plan.shown].numpy().astype("uint8")
    return arrays, check


def _checks(plan: Plan, frame: pd.DataFrame) -> list[convergence.Check]:
    """The other number of passes against the share of the prior in holes, and the errors of these shares."""
    shares: Any = frame[frame["quantity"] == SHARE]
    some: Any = shares[shares["seed"].isin(plan.seeds[: plan.again])]
    means: Any = results.over_seeds(shares[shares["passes"] == plan.passes].drop(columns="passes"), by="beta")
    limits = {beta: convergence.allowed(share, 0.02) for beta, share in means.items()}
    errors = convergence.errors({f"the share in holes at β = {beta:g}": share for beta, share in means.items()}, 0.02)
    moved = convergence.twice(some.assign(allowed=some["beta"].map(limits)), ["beta"])
    return [
        replace(errors, name="the errors of the shares in holes are small enough"),
        replace(moved, name=moved.name.replace("nothing", "no share in holes")),
    ]
