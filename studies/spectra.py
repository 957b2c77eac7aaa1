"""The spectra of data sets, and the curve that a Gaussian of that spectrum would have: a logarithm, exponentials, or a power?

Reverse water-filling turns a spectrum into a curve. A power law λ_i ∝ i^−α makes MSE = T + C·R^(1−α) once many directions are
coded, and for α = 1 a logarithm in its place; between two eigenvalues, and for a number of equal ones, it is an exponential. So
eigenvalues are fitted by a power of their rank, in two halves of a range that must agree, and the curve by each of the three.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from nbvae import analytic, results
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab
from studies.plan import Plan as Common
from studies.plan import load
from studies.record import Record

QUESTION = "Which power of the rank are the eigenvalues of a data set, if any, and is the curve that they make a logarithm?"
CHAPTER = "03_rate_distortion"
DATASETS = ("digits", "mnist", "glyphs", "patches")
LAWS = ("logarithm", "exponential", "power")
_FEWEST = 6  # directions, so that each half of the ranks has two


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study; each seed draws another half of the training images, with grey values.

    - `ranks`: of the eigenvalues that a power of the rank is fitted to, from the first to the last.
    - `rates`: of the curve that is fitted, from the least to the most, in nats.
    - `points`: how many rates, at equal distances.
    - `agree`: by how much the exponents of the two halves of the ranks may differ, for a power law.
    - `tested`: of how many test images, at most, the spectrum is kept too.
    - `largest_error`: the most that the standard error of an exponent may be.
    """

    ranks: tuple[int, ...] = (5, 180)
    rates: tuple[float, ...] = (20.0, 100.0)
    points: int = 100
    agree: float = 0.2
    tested: int = 4000
    largest_error: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ranks", "rates"):
            each = getattr(self, name)
            if len(each) != 2 or not 0 < each[0] < each[1]:
                raise ValueError(f"{name} must be two numbers > 0, the first below the second; got {each}")
        if self.points < 4 or len(self.seeds) < 2:
            raise ValueError("points must be at least 4, for three laws, and there must be at least two seeds")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset, binarize="none")
    if dataset == "digits":
        full = full.changed(ranks=(2, 40), rates=(2.0, 20.0))
    elif dataset not in DATASETS:  # for any, within what its covariance has
        rank = directions(full.data().train)
        full = full.changed(ranks=(1, max(3, rank // 2)), rates=(0.05 * rank, 0.3 * rank))
    few = {"full": None, "quick": 2000, "smoke": 500}[budget]
    return full if few is None else full.changed(images=few, seeds=(0, 1))


def run(plan: Plan, lab: Lab) -> Record:
    if plan.dataset not in DATASETS:
        accept(plan.data())
    names = ("dataset", "binarize", "images", "ranks", "rates", "points", "tested")
    common = {name: plan.settings[name] for name in names}
    [whole, *halves] = lab.map(measure, [common | {"seed": seed} for seed in (None, *plan.seeds)], "spectra")
    rows = [row | {"seed": seed} for seed, found in zip(plan.seeds, halves, strict=True) for row in found["rows"]]
    frame = results.frame_of(rows)
    return Record.of(
        __name__,
        plan,
        lab,
        rows,
        checks=_checks(plan, frame, results.frame_of(whole["rows"])),
        said=_said(plan, frame),
        arrays={name: whole[name] for name in ("eigenvalues", "of test images")},
    )


def measure(
    dataset: str,
    binarize: str | None,
    images: int | None,
    ranks: list[int],
    rates: list[float],
    points: int,
    tested: int,
    seed: int | None,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """The spectrum of the training images, or of a half of them that the seed draws; its exponents, and fits to its curve."""
    ds = load(dataset, binarize, images)
    x = ds.train
    if seed is not None:
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: len(x) // 2]]
    spectrum = eigenvalues(x)
    if ranks[1] > (count := int((spectrum > 0).sum())):
        raise ValueError(f"ranks must be at most {count}, the number of directions in which the examples vary; got {ranks[1]}")
    middle = round((ranks[0] * ranks[1]) ** 0.5)
    found = {
        f"exponent, ranks {low} to {high}": exponent(spectrum, low, high)
        for low, high in (ranks, (ranks[0], middle), (middle, ranks[1]))
    }
    at = np.linspace(rates[0], rates[1], points)
    mse = np.array([analytic.gaussian_distortion_rate(spectrum, rate) for rate in at])
    for law in LAWS:
        parameter, rms = fit(law, at, mse)
        found |= {f"residual of {law}": rms} | ({} if parameter is None else {f"parameter of {law}": parameter})
    rows = [{"quantity": name, "value": value, "split": "train", "stderr": None, "n": len(x)} for name, value in found.items()]
    return {"rows": rows, "eigenvalues": spectrum, "of test images": eigenvalues(ds.test[:tested])}


def accept(ds: Any) -> None:
    """Refuse data in whose spectrum no power of the rank can be looked for, in one line."""
    if (rank := directions(ds.train)) < _FEWEST:
        raise ValueError(f"a spectrum is fitted from {_FEWEST} directions on, in half of the examples; {ds.name} has {rank}")


def directions(x: torch.Tensor) -> int:
    """In how many directions examples (N, *shape) vary, where half of them, which a seed draws, can vary in as many."""
    return min(int((eigenvalues(x) > 0).sum()), len(x) // 2 - 1)


def eigenvalues(x: torch.Tensor) -> np.ndarray:
    """Those of the covariance of examples (N, *shape), the largest first; what rounding leaves is 0."""
    return analytic.LinearGaussian(np.atleast_2d(torch.cov(x.flatten(1).double().T, correction=0).numpy()), 1).eigenvalues


def exponent(spectrum: np.ndarray, low: int, high: int) -> float:
    """α of λ_i ∝ i^−α over the ranks `low` to `high`, by least squares on logarithms, each rank once.

    >>> exponent(3.0 * np.arange(1, 101.0) ** -1.5, 5, 80)
    1.5
    """
    ranks = np.arange(low, high + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(spectrum[ranks - 1]), 1)
    return round(float(-slope), 12)


def fit(law: str, rate: np.ndarray, value: np.ndarray) -> tuple[float | None, float]:
    """Fit a falling curve by one of `LAWS`: A − B·log R, T + C·exp(−2R/a) or T + C·R^−γ.

    - `rate`: rates, in nats; `value`: the distortion or squared error at each, in any unit.

    Returns a or γ (None for the logarithm), and the root mean square of what is left, as a share of the curve's fall. Raises
    `ValueError` for fewer than four points, which three parameters meet, and for a curve that does not fall.

    >>> rate = np.linspace(2, 20, 50)
    >>> [round(fit("power", rate, 1 + 3 * rate**-0.5)[0], 3), round(fit("exponential", rate, np.exp(-rate / 4))[0], 3)]
    [0.5, 8.0]
    >>> [fit(law, rate, 7 - 2 * np.log(rate))[1] < 1e-3 for law in LAWS]
    [True, False, True]
    """
    if len(rate) < 4 or not np.ptp(value) > 0:
        raise ValueError(f"a law is fitted to a curve of at least four points that falls, got {len(rate)}")
    shapes = {"logarithm": lambda _: -np.log(rate), "exponential": lambda a: np.exp(-2 * rate / a), "power": lambda g: rate**-g}

    def residual(log_parameter: float) -> float:
        design = np.column_stack([np.ones_like(rate), shapes[law](np.exp(log_parameter))])
        left = design @ np.linalg.lstsq(design, value, rcond=None)[0] - value
        return float(np.sqrt(np.mean(left**2)) / (value.max() - value.min()))

    if law == "logarithm":
        return None, residual(0.0)
    bounds = np.log([rate.mean() / 5, 50 * rate.mean()] if law == "exponential" else [1e-3, 5.0])
    grid = np.linspace(bounds[0], bounds[1], 60)
    best = int(np.argmin([residual(each) for each in grid]))
    around = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found: Any = minimize_scalar(residual, bounds=around, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)), float(found.fun)


def exponents(frame: Any) -> dict[str, Estimate]:
    """The exponents over the range of ranks and its two halves.

    Halves of one data set vary about its whole as the whole varies about the population, and they overlap. So the error is
    their standard deviation, and not that divided by the square root of their number.
    """
    names = [name for name in frame["quantity"].unique() if name.startswith("exponent, ")]
    each = {name.removeprefix("exponent, "): frame[frame["quantity"] == name] for name in names}
    return {name: Estimate(rows["value"].mean(), rows["value"].std(), len(rows)) for name, rows in each.items()}


def is_power(found: dict[str, Estimate], agree: float) -> bool:
    """Whether the exponents of the two halves of the ranks are the same, to `agree`."""
    _, first, second = found.values()
    return abs(first.value - second.value) <= agree


def _checks(plan: Plan, frame: Any, whole: Any) -> list[convergence.Check]:
    found = exponents(frame)
    at = whole.set_index("quantity")["value"]
    moved = {name: abs(each.value - at[f"exponent, {name}"]) for name, each in found.items()}
    worst = max(moved, key=lambda name: moved[name])
    return [
        convergence.Check(
            "the errors of the exponents are small enough",
            max(each.stderr for each in found.values()) <= plan.largest_error,
            f"{', '.join(f'{each} ({name})' for name, each in found.items())}; {plan.largest_error:g} allowed",
        ),
        convergence.Check(
            "twice the images move no exponent",
            max(moved.values()) <= 2 * plan.largest_error,
            f"the largest change is {moved[worst]:.3f}, of {worst}; {2 * plan.largest_error:g} allowed",
        ),
    ]


def _said(plan: Plan, frame: Any) -> str:
    found = exponents(frame)
    each = ", ".join(f"{value} over {name}" for name, value in found.items())
    verdict = "one power law" if is_power(found, plan.agree) else "no power law"
    left = {law: frame.loc[frame["quantity"] == f"residual of {law}", "value"].mean() for law in LAWS}
    fits = ", ".join(f"{law} {100 * value:.2g} %" for law, value in left.items())
    return (
        f"Exponents: {each}: {verdict}. The Gaussian's curve from {plan.rates[0]:g} to {plan.rates[1]:g} nats is fitted to "
        f"within {fits} of its fall."
    )
