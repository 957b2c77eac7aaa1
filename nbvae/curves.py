"""Rate–distortion curves as records: points, comparisons, checks and exact storage. No models, no torch.

A point is a model at its β: rate R and distortion D in nats per example, trained to minimise D + βR (Alemi et al.
2018). Standard errors are of these means; nan says that none is known. βs that agree to 1e-6 (relative) are one and the
same β.

Where the error of a loss D + βR is not given, it is bounded: sd(D + βR) <= sd(D) + β sd(R), whatever their correlation,
which is usually negative. Where two points are compared, their errors are taken to be independent. Points that were
measured on the same examples err together, and so differ by less than the error given here says.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from nbvae import _files, checks, results
from nbvae.results import Estimate

_SAME_BETA = 1e-6
_RD, _HEADER = ("rate", "distortion"), ("β", "rate (nats)", "distortion (nats)")


@dataclass(frozen=True, eq=False)
class RDPoint(results.Quantities):
    """One measured model, or the mean of several at one β.

    - `beta`: β > 0.
    - `rate`, `distortion`: their means per example, nats.
    - `mse`: the squared error, *summed* over dimensions, its mean per example; nan where it is not known.
    - `rate_stderr`, `distortion_stderr`, `mse_stderr`: the standard errors of these means, >= 0; nan where none is known.
    - `n_runs`: the number of trainings that are averaged.
    - `loss_stderr`: the standard error of D + βR itself, which those of D and R do not determine.
    - `n_examples`: the number of examples measured, where it is known.
    - `seed`: what the training was seeded with, where it is known: a label, that `mean_of` and equality do not look at.
    - `runs`: the points of the single trainings of a mean, as `mean_of` keeps them.

    Its quantities, in `estimate` and `to_frame`, are rate, distortion, mse and loss: of a mean with its runs, means over these;
    the frame has a row for each run. Two points are equal if their fields but the seed are, nan equal to nan.

    Raises `ValueError` unless these limits hold, rate and distortion are finite, and `runs` are as many as `n_runs`, of this β
    and with this mean.

    >>> point = RDPoint.mean_of([RDPoint(1.0, rate, 5.0, seed=seed) for seed, rate in enumerate([3.0, 3.2])])
    >>> print(point.estimate("rate"), point.to_frame()["seed"].unique())
    3.10 ± 0.10 [0 1]
    """

    beta: float
    rate: float
    distortion: float
    mse: float = math.nan
    rate_stderr: float = math.nan
    distortion_stderr: float = math.nan
    mse_stderr: float = math.nan
    n_runs: int = 1
    loss_stderr: float = math.nan
    n_examples: int | None = None
    seed: int | None = None
    runs: tuple["RDPoint", ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "beta", checks.positive("beta", self.beta))
        object.__setattr__(self, "n_runs", checks.whole("n_runs", self.n_runs))
        for name in ("rate", "distortion", "mse", "rate_stderr", "distortion_stderr", "mse_stderr", "loss_stderr"):
            value, measured = getattr(self, name), name in ("rate", "distortion")
            known = checks.is_finite(value)
            if not known and (measured or not isinstance(value, Real) or not math.isnan(value)):
                raise ValueError(f"{name} must be a finite number{'' if measured else ', or nan'}; got {checks.short(value)}")
            if name.endswith("_stderr") and value < 0:
                raise ValueError(f"{name} must be >= 0, or nan; got {checks.short(value)}")
            object.__setattr__(self, name, float(value))
        for name, check in (("n_examples", checks.whole), ("seed", checks.seed)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check(name, getattr(self, name)))
        object.__setattr__(self, "runs", tuple(self.runs))
        if self.runs:
            single = [run for run in self.runs if isinstance(run, RDPoint) and run.n_runs == 1]
            if not self.n_runs == len(self.runs) == len(single) > 1 or not _one_beta([self, *single]):
                raise ValueError(f"runs must be {self.n_runs} points of one run each at beta = {self.beta:g}, two or more")
            means = [np.mean([getattr(run, name) for run in single]) for name in ("rate", "distortion")]
            if not np.allclose(means, [self.rate, self.distortion]):
                raise ValueError(f"the runs have the mean rate and distortion {means[0]:g} and {means[1]:g}, not the point's")

    @classmethod
    def mean_of(cls, points: Sequence["RDPoint"]) -> "RDPoint":
        """The mean of `points`, single runs at one β, kept as its `runs`; its errors are those of that mean, over the runs.

        The spread holds training and its seed; errors of the points themselves are not added, being part of it unless
        all runs were measured on the same examples. Raises `ValueError` for fewer than two runs, or several β.
        """
        points = list(points)
        if len(points) < 2 or any(point.n_runs != 1 for point in points):
            raise ValueError(f"mean_of needs at least two points of one run each, got {len(points)}")
        if not _one_beta(points):
            raise ValueError(f"mean_of needs points of one beta, got {', '.join(f'{p.beta:g}' for p in points)}")
        values = {name: np.array([getattr(point, name) for point in points]) for name in ("rate", "distortion", "mse")}
        errors = values | {"loss": values["distortion"] + points[0].beta * values["rate"]}
        means = {name: Estimate.over_runs(value) for name, value in errors.items()}
        known: dict[str, Any] = {name: means[name].value for name in values}
        known |= {f"{name}_stderr": mean.stderr for name, mean in means.items()}
        counts = {point.n_examples for point in points}
        return cls(
            beta=points[0].beta,
            n_runs=len(points),
            **known,
            n_examples=counts.pop() if len(counts) == 1 else None,
            runs=tuple(points),
        )

    def estimates(self) -> dict[str, Estimate]:
        """Rate, distortion, mse (where it is known) and loss, D + βR: over the runs of a mean, else over the examples."""
        names = ["rate", "distortion", *(["mse"] if math.isfinite(self.mse) else [])]
        if self.runs:
            values = {name: [getattr(run, name) for run in self.runs] for name in names}
            values["loss"] = [run.loss(self.beta) for run in self.runs]
            return {name: Estimate.over_runs(each) for name, each in values.items()}
        n, over = (self.n_runs, "runs") if self.n_runs > 1 else (self.n_examples, "examples")
        found = {name: Estimate(getattr(self, name), getattr(self, f"{name}_stderr"), n, over) for name in names}
        return found | {"loss": Estimate(self.loss(), self.loss_error(), n, over)}

    def to_frame(self, **columns: Any) -> pd.DataFrame:
        """A tidy frame of the quantities of each run, or of the point where it has none, with constant `columns`."""
        return RDCurve([self]).to_frame(**columns)

    def loss(self, beta: float | None = None) -> float:
        """D + βR in nats, at the point's own β or at another one."""
        return self.distortion + (self.beta if beta is None else beta) * self.rate

    def loss_error(self, beta: float | None = None) -> float:
        """The standard error of `loss(beta)`, nats: exact where `loss_stderr` is given, else the bound sd(D) + β sd(R).

        At another β, `loss_stderr` gives the covariance: var(D + β′R) = var D + β′² var R + 2β′ cov(D, R).
        """
        beta = self.beta if beta is None else beta
        sd_d, sd_r = self.distortion_stderr, beta * self.rate_stderr
        if math.isnan(self.loss_stderr):
            return sd_d + sd_r
        if beta == self.beta:
            return self.loss_stderr
        own = self.beta * self.rate_stderr
        twice_covariance = (self.loss_stderr**2 - sd_d**2 - own**2) * beta / self.beta
        # Rounded input can leave the range that a covariance allows.
        variance = np.clip(sd_d**2 + sd_r**2 + twice_covariance, (sd_d - sd_r) ** 2, (sd_d + sd_r) ** 2)
        return math.sqrt(variance)

    def _stored(self) -> dict[str, float | int | None]:
        """What files keep of a point by itself: its fields but the runs, nan as None."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}

    def _key(self) -> tuple:
        return tuple(value for name, value in self._stored().items() if name != "seed"), self.runs

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RDPoint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


_FIELDS = tuple(field.name for field in fields(RDPoint) if field.name != "runs")
_WHOLE = ("n_runs", "n_examples", "seed")
_NEEDED = ("beta", "rate", "distortion")


def _by_seed(point: RDPoint, beta: float) -> dict[int, float]:
    """D + βR of each run of a point; `ValueError` unless each has a seed of its own."""
    runs = point.runs or (point,)
    seeds = {run.seed for run in runs}
    if point.n_runs != len(runs) or None in seeds or len(seeds) < len(runs):
        raise ValueError(
            f"pairs need the runs of each point, each with a seed of its own; at beta = {point.beta:g} they are not known"
        )
    return {run.seed: run.loss(beta) for run in runs if run.seed is not None}


def _one_beta(points: Iterable[RDPoint]) -> bool:
    betas = [point.beta for point in points]
    return np.allclose(betas, betas[0], rtol=_SAME_BETA, atol=0)


@dataclass(frozen=True, eq=False)
class Regret(results.Quantities):
    """What one curve loses against another, at their shared βs: (D + βR) − (D + βR of the other), nats per example.

    - `betas`: the shared βs, (shared,).
    - `per_beta`, `per_beta_stderr`: the regret at each and its standard error.
    - `mean`, `mean_stderr`: the mean over these β, and its standard error.
    - `seeds`, `runs`: of pairs, the seeds and the regret of each at each β, (seeds, shared); else none.

    In pairs, all errors are over the seeds. Else they take the two curves as independent: too wide if both were measured on the
    same examples. `mean_stderr` then takes the βs as independent too: too narrow if the points of a curve share a model.
    """

    betas: Float[np.ndarray, " shared"]
    per_beta: Float[np.ndarray, " shared"]
    per_beta_stderr: Float[np.ndarray, " shared"]
    mean: float
    mean_stderr: float
    seeds: tuple[int, ...] = ()
    runs: Float[np.ndarray, "seeds shared"] | None = None

    def estimates(self) -> dict[str, Estimate]:
        """`mean`, and `per_beta[0]` and so on in the order of `betas`."""
        if self.runs is None:
            return {name: replace(each, n=None, over=None) for name, each in super().estimates().items()}
        each = {f"per_beta[{i}]": Estimate.over_runs(values) for i, values in enumerate(self.runs.T)}
        return {"mean": Estimate.over_runs(self.runs.mean(1)), **each}

    def __str__(self) -> str:
        each = [
            f"  β = {beta:g}: {Estimate(y, e):+}"
            for beta, y, e in zip(self.betas, self.per_beta, self.per_beta_stderr, strict=True)
        ]
        return "\n".join([f"regret of D + βR, nats: mean {Estimate(self.mean, self.mean_stderr):+}", *each])

    def to_frame(self, **columns: Any) -> pd.DataFrame:
        """A tidy frame of the regret at each β, in pairs for each seed, with constant `columns`."""
        if self.runs is not None:
            return results.tidy(self.runs, {"seed": self.seeds, "beta": self.betas}, "regret", **columns)
        each = zip(self.betas, self.per_beta, self.per_beta_stderr, strict=True)
        return results.frame_of([results.row_of("regret", Estimate(y, e), beta=float(beta)) for beta, y, e in each], **columns)


@dataclass(frozen=True, eq=False)
class Envelope:
    """The chords between neighbouring points of a curve against the envelope condition dD/dR = −β, entry by pair.

    Two optima at β₁ < β₂ satisfy β₁(R₁ − R₂) <= D₂ − D₁ <= β₂(R₁ − R₂): neither is worse, at its own β, than the other
    one would be there. `slack_lower` and `slack_upper` are by how much, in nats, at β₁ and at β₂: negative means that
    the neighbour is the better model at that β. `slopes` is (D₂ − D₁)/(R₁ − R₂), within [`lower`, `upper`] = [β₁, β₂]
    for optima, nan where the rates are equal. `holds`: neither slack is more than `k` of its standard errors below
    zero; an unknown error counts as zero.
    """

    lower: Float[np.ndarray, " pairs"]
    upper: Float[np.ndarray, " pairs"]
    slopes: Float[np.ndarray, " pairs"]
    slack_lower: Float[np.ndarray, " pairs"]
    slack_upper: Float[np.ndarray, " pairs"]
    slack_lower_stderr: Float[np.ndarray, " pairs"]
    slack_upper_stderr: Float[np.ndarray, " pairs"]
    holds: Bool[np.ndarray, " pairs"]
    k: float


@dataclass(frozen=True)
class RDCurve:
    """Points of one method, sorted by β: `points` are `RDPoint`s in any order, at least one, each β once; else `ValueError`.

    >>> curve = RDCurve([RDPoint(beta=2.0, rate=1.0, distortion=5.0), RDPoint(beta=0.5, rate=3.0, distortion=3.0)])
    >>> curve.betas.tolist(), curve[2.0].rate, curve.loss().tolist()
    ([0.5, 2.0], 1.0, [4.5, 7.0])
    >>> len(str(curve).splitlines())  # a table of β, rate and distortion
    3
    """

    points: Sequence[RDPoint]

    def __post_init__(self):
        points = tuple(self.points) if isinstance(self.points, Iterable) and not hasattr(self.points, "dtype") else ()
        if not points or not all(isinstance(point, RDPoint) for point in points):
            raise ValueError("a curve needs at least one point, each an RDPoint")
        points = tuple(sorted(points, key=lambda point: point.beta))
        for one, two in itertools.pairwise(points):
            if math.isclose(one.beta, two.beta, rel_tol=_SAME_BETA):
                raise ValueError(f"a curve has one point for each beta, got two at {one.beta:g}")
        object.__setattr__(self, "points", points)

    def __str__(self) -> str:
        rows = [
            (f"{point.beta:g}", *(str(Estimate(getattr(point, name), getattr(point, f"{name}_stderr"))) for name in _RD))
            for point in self
        ]
        return "\n".join(f"{beta:>10s}  {rate:>18s}  {distortion:>18s}" for beta, rate, distortion in [_HEADER, *rows])

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[RDPoint]:
        return iter(self.points)

    def __getitem__(self, beta: float) -> RDPoint:
        """The point at `beta`; `KeyError` if there is none."""
        for point in self.points:
            if isinstance(beta, Real) and math.isclose(point.beta, beta, rel_tol=_SAME_BETA):
                return point
        raise KeyError(f"no point at beta = {beta!r}; the curve has {', '.join(f'{b:g}' for b in self.betas)}")

    @property
    def betas(self) -> Float[np.ndarray, " points"]:
        """β of each point, increasing."""
        return self._column("beta")

    @property
    def rates(self) -> Float[np.ndarray, " points"]:
        """Rate of each point, nats per example."""
        return self._column("rate")

    @property
    def distortions(self) -> Float[np.ndarray, " points"]:
        """Distortion of each point, nats per example."""
        return self._column("distortion")

    @property
    def mses(self) -> Float[np.ndarray, " points"]:
        """Squared error of each point, summed over dimensions, per example."""
        return self._column("mse")

    @property
    def rate_stderrs(self) -> Float[np.ndarray, " points"]:
        """Standard error of each rate, nats."""
        return self._column("rate_stderr")

    @property
    def distortion_stderrs(self) -> Float[np.ndarray, " points"]:
        """Standard error of each distortion, nats."""
        return self._column("distortion_stderr")

    @property
    def mse_stderrs(self) -> Float[np.ndarray, " points"]:
        """Standard error of each MSE."""
        return self._column("mse_stderr")

    @property
    def loss_stderrs(self) -> Float[np.ndarray, " points"]:
        """Standard error of each D + βR, nats; where `loss_stderr` is not given, the bound sd(D) + β sd(R)."""
        return np.array([point.loss_error() for point in self])

    def loss(self) -> Float[np.ndarray, " points"]:
        """D + βR of each point at its own β, nats per example."""
        return np.array([point.loss() for point in self])

    def to_frame(self, **columns: Any) -> pd.DataFrame:
        """A tidy frame: a row for each β, run and quantity, with constant `columns`, as dataset="digits", split="test".

        A point that is a mean of runs is the rows of these, each with its seed and with its own error, over examples; `results`
        has the means over seeds and the differences in pairs. A mean whose runs are not known is one row.

        >>> curve = RDCurve([RDPoint(2.0, rate=1.0, distortion=5.0, rate_stderr=0.1, n_examples=400, seed=0)])
        >>> print(curve.to_frame(split="test").to_string(index=False))
         beta  seed split   quantity  value  stderr   n
          2.0     0  test       rate    1.0     0.1 400
          2.0     0  test distortion    5.0     NaN 400
          2.0     0  test       loss    7.0     NaN 400
        """
        rows = [
            results.row_of(name, each, beta=point.beta, seed=run.seed)
            for point in self
            for run in point.runs or (point,)
            for name, each in run.estimates().items()
        ]
        return results.frame_of(rows, **columns)

    def beta_at(self, rate: float) -> float:
        """The β at which the curve has `rate` (nats): log β on straight lines in the rate between neighbouring points.

        Rates that rise with β, as noise makes them, are first replaced by the closest ones that do not (least squares): the
        answer never rises with the rate. Where the rate is the same at several β it is the smallest.

        Raises `ValueError` outside the range of these rates.

        >>> curve = RDCurve([RDPoint(0.1, rate=20.0, distortion=1.0), RDPoint(10.0, rate=10.0, distortion=9.0)])
        >>> round(curve.beta_at(rate=15.0), 9)
        1.0
        """
        falling = isotonic_regression(self.rates, increasing=False).x
        low, high = falling[-1], falling[0]
        if not checks.is_finite(rate) or not low <= rate <= high:
            raise ValueError(f"rate must be one number within the curve's, {low:g} to {high:g} nats; got {checks.short(rate)}")
        return float(np.exp(np.interp(rate, falling[::-1], np.log(self.betas)[::-1])))

    def regret(self, other: "RDCurve", paired: bool = False) -> Regret:
        """D + βR minus that of another curve at each β that both have, and its mean over these β.

        - `other`: the curve to compare with.
        - `paired`: whether to compare the trainings seed by seed, as `rd_curve` keeps them: the errors are then over seeds.

        Raises `ValueError` if the curves share no β; in pairs, unless all points there have runs with the same seeds.
        """
        if not isinstance(other, RDCurve):
            raise ValueError(f"a regret is against another RDCurve, got {checks.short(other)}")
        pairs = [(a, b) for a in self for b in other if math.isclose(a.beta, b.beta, rel_tol=_SAME_BETA)]
        if not pairs:
            these, those = (", ".join(f"{beta:g}" for beta in curve.betas) for curve in (self, other))
            raise ValueError(f"the curves share no beta: one has {these}, the other {those}")
        # One β for both, so that two spellings of it make no difference.
        betas = np.array([a.beta for a, _ in pairs])
        if paired:
            each = [(_by_seed(a, a.beta), _by_seed(b, a.beta)) for a, b in pairs]
            seeds = tuple(each[0][0])
            if any(set(losses) != set(seeds) for losses in itertools.chain(*each)):
                raise ValueError("a paired regret needs every point of both curves to have runs with the same seeds")
            runs = np.array([[ours[seed] - theirs[seed] for ours, theirs in each] for seed in seeds])
            stderrs = np.array([Estimate.over_runs(values).stderr for values in runs.T])
            mean = Estimate.over_runs(runs.mean(1))
            return Regret(betas, runs.mean(0), stderrs, mean.value, mean.stderr, seeds, runs)
        per_beta = np.array([a.loss() - b.loss(a.beta) for a, b in pairs])
        errors = np.array([math.hypot(a.loss_error(), b.loss_error()) for a, b in pairs])
        return Regret(betas, per_beta, errors, float(per_beta.mean()), float(np.linalg.norm(errors) / len(errors)))

    def pareto(self) -> "RDCurve":
        """The points that no other point beats: none has a rate and a distortion as low, and one of them lower."""

        def beaten(point: RDPoint) -> bool:
            return any(
                other.rate <= point.rate
                and other.distortion <= point.distortion
                and (other.rate < point.rate or other.distortion < point.distortion)
                for other in self
            )

        return RDCurve([point for point in self if not beaten(point)])

    def interpolate(self, rate: float) -> float:
        """The distortion (nats) at `rate` (nats) on straight lines between neighbours of the Pareto front.

        It is achievable: use each of the two models for a share of the data. Hence it compares distortions at equal
        rates fairly only where the curve has points close by. Raises `ValueError` outside the front's range of rates.
        """
        front = sorted(self.pareto(), key=lambda point: point.rate)
        low, high = front[0].rate, front[-1].rate
        if not checks.is_finite(rate) or not low <= rate <= high:
            raise ValueError(f"rate must be within the Pareto front's, {low:g} to {high:g} nats; got {checks.short(rate)}")
        return float(np.interp(rate, [point.rate for point in front], [point.distortion for point in front]))

    def bd_rate(self, other: "RDCurve") -> float:
        """By how many nats the rate is above that of `other` at equal distortion, on average over the distortions of both.

        After Bjøntegaard (2001), who averages logarithms of rates, a share: those of collapsed models are zero, so these are
        nats. Between the points of a Pareto front the rate is a monotone cubic of the distortion (PCHIP), and the average is
        over the distortions that both fronts have, with equal weights. β plays no part: a curve whose points carry wrong βs is
        the same curve.

        Raises `ValueError` if a front has one point only, and if the two have no distortions in common.

        >>> line = RDCurve([RDPoint(beta, rate=4 - beta, distortion=2 * beta) for beta in (1.0, 2.0, 3.0)])
        >>> line.bd_rate(RDCurve([RDPoint(beta, rate=3.5 - beta, distortion=2 * beta) for beta in (1.0, 3.0)]))
        0.5
        """
        if not isinstance(other, RDCurve):
            raise ValueError(f"a difference of rates is from another RDCurve, got {checks.short(other)}")
        fronts = [dict(sorted((point.distortion, point.rate) for point in curve.pareto())) for curve in (self, other)]
        low, high = max(map(min, fronts)), min(map(max, fronts))
        if not low < high:
            ends = " and ".join(f"{min(front):g} to {max(front):g}" for front in fronts)
            raise ValueError(f"the Pareto fronts must have a range of distortions in common; they have {ends} nats")
        ours, theirs = (PchipInterpolator([*front], [*front.values()]).integrate(low, high) for front in fronts)
        return float(ours - theirs) / (high - low)

    def envelope(self, k: float = 2.0) -> Envelope:
        """Check dD/dR = −β between neighbouring βs within `k` standard errors; `ValueError` for a single point."""
        checks.positive("k", k)
        if len(self) < 2:
            raise ValueError("the envelope check compares neighbours: it needs at least two points, got one")
        pairs = list(itertools.pairwise(self.points))
        lower, upper = self.betas[:-1], self.betas[1:]
        rate_drop, rise = -np.diff(self.rates), np.diff(self.distortions)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(rate_drop == 0, np.nan, rise / rate_drop)
        slacks = (rise - lower * rate_drop, upper * rate_drop - rise)
        errors = [
            np.array([math.hypot(a.loss_error(at), b.loss_error(at)) for (a, b), at in zip(pairs, betas, strict=True)])
            for betas in (lower, upper)
        ]
        # Two equal losses differ by rounding.
        rounding = 1e-12 * (abs(self.distortions[:-1]) + upper * abs(self.rates[:-1]))
        holds = np.all(
            [slack >= -k * np.nan_to_num(error) - rounding for slack, error in zip(slacks, errors, strict=True)], axis=0
        )
        return Envelope(lower, upper, slopes, *slacks, *errors, holds=holds, k=float(k))

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write to `path` a row for each point under the names of `RDPoint`'s fields, and for each run of a mean, at its β.

        Every float is kept exactly; what is not known is "nan".
        """
        _files.write_csv(path, self._records())

    @classmethod
    def from_csv(cls, path: str | os.PathLike) -> "RDCurve":
        """Read what `to_csv` wrote to `path`; columns and rows in any order, and only beta, rate and distortion must be there.

        Where a mean of `n_runs` stands with as many single runs at its β, these are its runs.

        Raises `FileNotFoundError`, or `ValueError` that names the file and, where it can, the row.
        """
        return cls._from_records(path, _files.read_csv(path, _FIELDS, _NEEDED))

    def to_json(self, path: str | os.PathLike) -> None:
        """Write `{"unit": "nats", "points": [...]}` to `path`, an object for each point, and for each run of a mean, at its β.

        Every float is kept exactly; what is not known is null.
        """
        _files.write_json(path, self._records())

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "RDCurve":
        """Read what `to_json` wrote to `path`, as `from_csv`: `FileNotFoundError`, or `ValueError` with file and point."""
        return cls._from_records(path, _files.read_json(path, _FIELDS, _NEEDED))

    @classmethod
    def _from_records(cls, path: str | os.PathLike, records: Sequence[tuple[str, dict[str, Any]]]) -> "RDCurve":
        points = []
        for where, record in records:
            values = {name: _files.number(f"{path}, {where}: {name}", value, name in _WHOLE) for name, value in record.items()}
            try:
                points.append(RDPoint(**values))
            except ValueError as error:
                raise ValueError(f"{path}, {where}: {error}") from None
        try:
            return cls(_with_runs(points))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _records(self) -> list[dict[str, float | int | None]]:
        return [each._stored() for point in self for each in (point, *point.runs)]

    def _column(self, name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in self.points])


def _with_runs(points: Iterable[RDPoint]) -> list[RDPoint]:
    """The points, with the single runs at the β of a mean of as many as its `runs`."""
    groups: list[list[RDPoint]] = []
    for point in sorted(points, key=lambda each: each.beta):
        if groups and _one_beta([groups[-1][0], point]):
            groups[-1].append(point)
        else:
            groups.append([point])
    found = []
    for group in groups:
        means, runs = ([each for each in group if (each.n_runs > 1) == many] for many in (True, False))
        whole = len(means) == 1 and len(runs) == means[0].n_runs
        found += [replace(means[0], runs=tuple(runs))] if whole else group
    return found
