"""Rate–distortion curves as records: points, comparisons, checks and exact storage. No models, no torch.

A point is a model at its β: rate R and distortion D in nats per example, trained to minimise D + βR (Alemi et al.
2018). Standard errors are of these means; nan says that none is known. βs that agree to 1e-6 (relative) are one and the
same β.

Where the error of a loss D + βR is not given, it is bounded: sd(D + βR) <= sd(D) + β sd(R), whatever their correlation,
which is usually negative. Where two points are compared, their errors are taken to be independent. Points that were
measured on the same examples err together, and so differ by less than the error given here says.
"""

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from nbvae import checks

_SAME_BETA = 1e-6


@dataclass(frozen=True, eq=False)
class RDPoint:
    """One measured model: rate and distortion in nats, MSE the *sum* over dimensions, all means per example.

    `*_stderr` are standard errors of these means, `loss_stderr` that of D + βR itself, which the other two do not
    determine. `n_runs` is the number of training runs averaged. Two points are equal if their fields are, nan equal to
    nan.

    Raises `ValueError` unless β > 0, rate and distortion are finite, standard errors are >= 0 or nan and `n_runs` >= 1.
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

    def __post_init__(self):
        object.__setattr__(self, "beta", checks.positive("beta", self.beta))
        object.__setattr__(self, "n_runs", checks.whole("n_runs", self.n_runs))
        for name in ("rate", "distortion", "mse", "rate_stderr", "distortion_stderr", "mse_stderr", "loss_stderr"):
            value, measured = getattr(self, name), name in ("rate", "distortion")
            known = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not known and (measured or not isinstance(value, Real) or not math.isnan(value)):
                raise ValueError(f"{name} must be a finite number{'' if measured else ', or nan'}; got {value!r}")
            if name.endswith("_stderr") and value < 0:
                raise ValueError(f"{name} must be >= 0, or nan; got {value!r}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def mean_of(cls, points: Sequence["RDPoint"]) -> "RDPoint":
        """The mean of single runs at one β; its standard errors are those of that mean, from the spread of the runs.

        The spread holds training and its seed; errors of the points themselves are not added, being part of it unless
        all runs were measured on the same examples.
        """
        points = list(points)
        if len(points) < 2 or any(point.n_runs != 1 for point in points):
            raise ValueError(f"mean_of needs at least two points of one run each, got {len(points)}")
        if not np.allclose([point.beta for point in points], points[0].beta, rtol=_SAME_BETA, atol=0):
            raise ValueError(f"mean_of needs points of one beta, got {', '.join(f'{p.beta:g}' for p in points)}")
        values = {name: np.array([getattr(point, name) for point in points]) for name in ("rate", "distortion", "mse")}
        errors = values | {"loss": values["distortion"] + points[0].beta * values["rate"]}
        return cls(
            beta=points[0].beta,
            n_runs=len(points),
            **{name: float(value.mean()) for name, value in values.items()},
            **{f"{name}_stderr": float(value.std(ddof=1) / len(points) ** 0.5) for name, value in errors.items()},
        )

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

    def _key(self) -> tuple[float | None, ...]:
        return tuple(None if math.isnan(value) else value for value in (getattr(self, field) for field in _FIELDS))

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RDPoint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


_FIELDS = tuple(field.name for field in fields(RDPoint))
_NEEDED = ("beta", "rate", "distortion")


@dataclass(frozen=True, eq=False)
class Regret:
    """What one curve loses against another, at their shared βs: (D + βR) − (D + βR of the other), nats per example.

    The standard errors take the two curves as independent: too wide if both were measured on the same examples.
    `mean_stderr` takes the βs as independent too: too narrow if the points of a curve share a model or examples.
    """

    betas: Float[np.ndarray, " shared"]
    per_beta: Float[np.ndarray, " shared"]
    per_beta_stderr: Float[np.ndarray, " shared"]
    mean: float
    mean_stderr: float


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
    """Points of one method, sorted by β, at least one, each β once; else `ValueError`.

    >>> curve = RDCurve([RDPoint(beta=2.0, rate=1.0, distortion=5.0), RDPoint(beta=0.5, rate=3.0, distortion=3.0)])
    >>> curve.betas.tolist(), curve[2.0].rate, curve.loss().tolist()
    ([0.5, 2.0], 1.0, [4.5, 7.0])
    """

    points: Sequence[RDPoint]

    def __post_init__(self):
        points = tuple(self.points) if isinstance(self.points, Iterable) else ()
        if not points or not all(isinstance(point, RDPoint) for point in points):
            raise ValueError("a curve needs at least one point, each an RDPoint")
        points = tuple(sorted(points, key=lambda point: point.beta))
        for one, two in itertools.pairwise(points):
            if math.isclose(one.beta, two.beta, rel_tol=_SAME_BETA):
                raise ValueError(f"a curve has one point for each beta, got two at {one.beta:g}")
        object.__setattr__(self, "points", points)

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

    def regret(self, other: "RDCurve") -> Regret:
        """D + βR minus that of `other` at each β that both have, and its mean; `ValueError` if they share none."""
        pairs = [(a, b) for a in self for b in other if math.isclose(a.beta, b.beta, rel_tol=_SAME_BETA)]
        if not pairs:
            these, those = (", ".join(f"{beta:g}" for beta in curve.betas) for curve in (self, other))
            raise ValueError(f"the curves share no beta: one has {these}, the other {those}")
        # One β for both, so that two spellings of it make no difference.
        per_beta = np.array([a.loss() - b.loss(a.beta) for a, b in pairs])
        errors = np.array([math.hypot(a.loss_error(), b.loss_error()) for a, b in pairs])
        betas = np.array([a.beta for a, _ in pairs])
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
        if not isinstance(rate, Real) or not low <= rate <= high:
            raise ValueError(f"rate must be within the Pareto front's, {low:g} to {high:g} nats; got {rate!r}")
        return float(np.interp(rate, [point.rate for point in front], [point.distortion for point in front]))

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
        """Write one row per point under the names of `RDPoint`'s fields; every float is kept exactly, nan as "nan"."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_FIELDS)
            writer.writerows([repr(getattr(point, name)) for name in _FIELDS] for point in self)

    @classmethod
    def from_csv(cls, path: str | os.PathLike) -> "RDCurve":
        """Read what `to_csv` wrote; columns may be in any order, and only beta, rate and distortion must be there.

        Raises `FileNotFoundError`, or `ValueError` that names the file and, where it can, the row.
        """
        lines = _text(path).splitlines()
        try:
            rows = list(csv.reader(lines, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from None
        header = [name.strip() for name in rows[0]] if rows else []
        records = []
        for number, row in enumerate(rows[1:], 1):
            if row:
                if len(row) != len(header):
                    raise ValueError(f"{path}, row {number}: {len(row)} values under {len(header)} names")
                records.append((f"row {number}", dict(zip(header, row, strict=True))))
        _known_names(path, header)
        return cls._from_records(path, records)

    def to_json(self, path: str | os.PathLike) -> None:
        """Write `{"unit": "nats", "points": [...]}`, one object per point; every float is kept exactly, nan as null."""
        points = [dict(zip(_FIELDS, point._key(), strict=True)) for point in self]
        text = json.dumps({"unit": "nats", "points": points}, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "RDCurve":
        """Read what `to_json` wrote. Raises `FileNotFoundError`, or `ValueError` with the file and the point."""
        try:
            content = json.loads(_text(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from None
        points = content.get("points") if isinstance(content, dict) else None
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise ValueError(f'{path} has no list "points" of objects')
        if content.get("unit") != "nats":
            raise ValueError(f'{path} has the unit {content.get("unit")!r}, expected "nats"')
        for point in points:
            _known_names(path, point)
        return cls._from_records(path, [(f"point {number}", point) for number, point in enumerate(points, 1)])

    @classmethod
    def _from_records(cls, path: str | os.PathLike, records: Sequence[tuple[str, dict[str, object]]]) -> "RDCurve":
        points = []
        for where, record in records:
            values = {name: _number(f"{path}, {where}: {name}", name, value) for name, value in record.items()}
            try:
                points.append(RDPoint(**values))
            except ValueError as error:
                raise ValueError(f"{path}, {where}: {error}") from None
        try:
            return cls(points)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _column(self, name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in self.points])


def _number(what: str, name: str, value: object) -> Any:
    """A field from its text (CSV) or its JSON value."""
    if value is None:
        return math.nan
    try:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError
        return int(value) if name == "n_runs" and not isinstance(value, float) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} must be a {'whole ' if name == 'n_runs' else ''}number, got {value!r}") from None


def _known_names(path: str | os.PathLike, names: Iterable[str]) -> None:
    names = list(names)
    if missing := [name for name in _NEEDED if name not in names]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(names) or 'nothing'}")
    if unknown := [name for name in names if name not in _FIELDS]:
        raise ValueError(f"{path} has unknown names {', '.join(unknown)}; known are {', '.join(_FIELDS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has a name twice: {', '.join(names)}")


def _text(path: str | os.PathLike) -> str:
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
