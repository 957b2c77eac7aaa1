"""What is measured: a number with its error, and tables of numbers, one in each row.

An `Estimate` is a mean with its standard error. A *tidy frame* is a `pandas.DataFrame` with one measured number in each row,
under the names of `COLUMNS`, those that apply: which model, at which β, trained with which seed, on which split, which
quantity, its value, standard error and the count behind that. Every result has `to_frame()`, which makes one. `over_seeds`
makes estimates of a frame, `paired` the differences to one of its parts.

The error of a difference depends on whether the two numbers were measured in pairs, on the same examples or with the same
seeds. Nothing here guesses it: `Estimate.minus` is told, and `paired` pairs what agrees in every column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from nbvae import checks
from nbvae._frames import COLUMNS, MEASURED, check_columns, check_frame, frame_of, paired, tidy

__all__ = ["COLUMNS", "Estimate", "Quantities", "frame_of", "over_seeds", "paired", "row_of", "tidy"]

_OVER = ("examples", "runs", "draws", "batches")


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean and its standard error.

    - `value`: the mean, in the unit of what was measured.
    - `stderr`: its standard error, in the same unit, >= 0; nan where none is known.
    - `n`: the number of values that it is the mean of; None where no single number says it.
    - `over`: what these values are: "examples", "runs" (trainings), "draws" or "batches"; None where they are of no one kind.
    - `values`: the values themselves, (n,), where they are kept: differences in pairs are made of them.

    It is a number with an error: `float(e)`, `-e`, `2 * e`, `e / 3` and `e + 1`; for a sum or a difference of two, `plus` and
    `minus` say whether they were measured in pairs. Two estimates are equal if value, error, n and over are, nan equal to nan.

    Formatted, value and error end at the same digit: the error's first, or its second where the first is a 1. Past seven
    digits, or under .0001, both share a power of ten. `f"{e:+}"` has the sign, and `f"{e:.3f}"` formats both numbers so. An
    error that is not known is left out.

    Raises `ValueError` for a value that is no number or not the mean of the values, a negative error, n < 1 and another `over`.

    >>> regret = Estimate(-0.3234, 0.0213, n=6, over="runs")
    >>> print(regret, f"| {regret:+.3f} |", 2 * regret, "|", Estimate(0.5))
    -0.32 ± 0.02 | -0.323 ± 0.021 | -0.65 ± 0.04 | 0.5
    """

    value: float
    stderr: float = math.nan
    n: int | None = None
    over: str | None = None
    values: Any = field(default=None, repr=False)

    __array_ufunc__ = None  # numpy's numbers leave products with an estimate to it

    def __post_init__(self):
        for name in ("value", "stderr"):
            value = _number(getattr(self, name))
            if value is None or (name == "stderr" and value < 0):
                allowed = "a number >= 0, or nan" if name == "stderr" else "a number"
                raise ValueError(f"{name} must be {allowed}; got {checks.short(getattr(self, name))}")
            object.__setattr__(self, name, value)
        if self.values is not None:
            object.__setattr__(self, "values", _values(self.values))
        count = len(self.values) if self.n is None and self.values is not None else self.n
        object.__setattr__(self, "n", None if count is None else checks.whole("n", count))
        if self.over is not None:
            checks.choice("over", self.over, _OVER)
        if self.values is not None and len(self.values) != self.n:
            raise ValueError(f"values must be the {self.n} that this is the mean of, got {len(self.values)}")
        if self.values is not None and not _is_mean(self.value, self.values):
            raise ValueError(f"value must be the mean of the values, {float(self.values.mean()):g}; got {self.value:g}")

    @classmethod
    def of(cls, values: Any, over: str = "examples") -> "Estimate":
        """The mean of values (n,), with the error that their spread gives it.

        - `values`: one number for each example, run, draw or batch, independent of each other: an array, a tensor or a list.
        - `over`: which of these they are.

        The error is their standard deviation (with n − 1) over √n: nan for a single value. Raises `ValueError` for no values.
        """
        values = _values(values)
        array = np.asarray(values)
        with np.errstate(invalid="ignore"):  # an infinite value has no spread: its estimate says so
            error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else math.nan
            return cls(float(array.mean()), float(error), len(array), over, values)

    @classmethod
    def over_examples(cls, values: Any) -> "Estimate":
        """The mean of one value for each example, (n,): `of`."""
        return cls.of(values, "examples")

    @classmethod
    def over_runs(cls, values: Any) -> "Estimate":
        """The mean of one value for each training, (n,): `of`. The error is that of other seeds, on the same examples.

        >>> before, after = np.array([3.0, 5.0]), np.array([2.5, 4.75])
        >>> Estimate.over_runs(after - before)  # the same seeds: their spread is not in the error
        Estimate(value=-0.375, stderr=0.125, n=2, over='runs')
        """
        return cls.of(values, "runs")

    @property
    def per_example(self) -> Any:
        """The values (n,) under the name that they have where they are over examples."""
        return self.values

    def minus(self, other: "Estimate", *, paired: bool) -> "Estimate":
        """This estimate less another.

        - `other`: the estimate that is taken away.
        - `paired`: whether the two were measured in pairs, value by value: on the same examples, or with the same seeds. If
          so, the error is that of the differences, for which both must hold as many values of one kind, in the same order;
          else the two are taken as independent, and the error is √(a² + b²).

        Raises `ValueError` if `paired` values are not there.

        >>> a, b = Estimate.over_runs([3.0, 5.0]), Estimate.over_runs([2.5, 4.9])
        >>> print(a.minus(b, paired=True), "|", a.minus(b, paired=False))
        0.3 ± 0.2 | 0.3 ± 1.6
        """
        if not isinstance(other, Estimate):
            raise ValueError(f"minus takes an Estimate, got {checks.short(other)}")
        if not paired:
            same = (self.n, self.over) == (other.n, other.over)
            n, over = (self.n, self.over) if same else (None, None)
            return Estimate(self.value - other.value, math.hypot(self.stderr, other.stderr), n, over)
        if self.values is None or other.values is None or (self.n, self.over) != (other.n, other.over):
            kinds = " and ".join(
                f"{each.n or 'unknown'} {each.over or 'values'}{' (not kept)' * (each.values is None)}"
                for each in (self, other)
            )
            raise ValueError(f"a paired difference needs as many values on both sides, of one kind; there are {kinds}")
        difference = np.asarray(self.values) - np.asarray(other.values)
        return Estimate.of(difference, self.over or "examples")

    def plus(self, other: "Estimate", *, paired: bool) -> "Estimate":
        """The sum of this estimate and the estimate `other`; `paired` as for `minus`."""
        if not isinstance(other, Estimate):
            raise ValueError(f"plus takes an Estimate, got {checks.short(other)}")
        return self.minus(-other, paired=paired)

    def to_frame(self, quantity: str = "value", **columns: Any) -> pd.DataFrame:
        """A tidy frame of one row, its quantity named `quantity`, with further constant `columns`."""
        return frame_of([{"quantity": quantity, "value": self.value, "stderr": self.stderr, "n": self.n}], **columns)

    def __float__(self) -> float:
        return self.value

    def __neg__(self) -> "Estimate":
        return -1.0 * self

    def __mul__(self, factor: Any) -> "Estimate":
        return NotImplemented if (by := _number(factor)) is None else self._map(by, 0.0)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Estimate":
        return NotImplemented if (by := _number(divisor)) is None else self._map(1 / by, 0.0)

    def __add__(self, number: Any) -> "Estimate":
        return _ambiguous("plus") if isinstance(number, Estimate) else self._shift(number, 1.0)

    __radd__ = __add__

    def __sub__(self, number: Any) -> "Estimate":
        return _ambiguous("minus") if isinstance(number, Estimate) else self._shift(number, -1.0)

    def __rsub__(self, number: Any) -> "Estimate":
        return (-self)._shift(number, 1.0)

    def _shift(self, number: Any, sign: float) -> "Estimate":
        return NotImplemented if (by := _number(number)) is None else self._map(1.0, sign * by)

    def _map(self, factor: float, shift: float) -> "Estimate":
        values = None if self.values is None else self.values * factor + shift
        return Estimate(self.value * factor + shift, self.stderr * abs(factor), self.n, self.over, values)

    def _key(self) -> tuple:
        value, error = (None if math.isnan(each) else each for each in (self.value, self.stderr))
        return value, error, self.n, self.over

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Estimate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        if spec not in ("", "+", "-", " "):
            if spec[-1] not in "eEfFgG%":  # a width, say: that of the whole text
                return format(str(self), spec)
            error = "" if math.isnan(self.stderr) else f" ± {format(self.stderr, spec.lstrip('+- '))}"
            return format(self.value, spec) + error
        sign = spec.strip("-")
        if math.isnan(self.stderr):
            return _alone(self.value, sign)
        if not math.isfinite(self.value) or self.stderr == math.inf:
            return f"{_alone(self.value, sign)} ± {self.stderr:.1g}"
        if self.stderr <= max(1e-14 * abs(self.value), 1e-300):  # none, or rounding: differences that are all the same, say
            return f"{_alone(self.value, sign)} ± 0"
        largest = max(abs(self.value), self.stderr)
        power = _exponent(largest) if not 1e-4 <= largest < 1e7 else 0
        value, error = self.value / 10.0**power, self.stderr / 10.0**power
        last = _exponent(error)  # the place of the last digit shown
        last -= f"{error:e}"[0] == "1"
        value, error = (round(each, -last) for each in (value, error))
        text = f"{value:{sign}z.{max(0, -last)}f} ± {error:.{max(0, -last)}f}"
        return f"({text})e{power:+03d}" if power else text


def _exponent(number: float) -> int:
    return int(f"{number:e}".split("e")[1])


def _alone(value: float, sign: str) -> str:
    """A value that no error rounds: four digits, and all before the point up to seven."""
    return f"{value:{sign}.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:{sign}.4g}"


def _number(value: Any) -> float | None:
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the floats
        return None


def _is_mean(value: float, values: Any) -> bool:
    """Whether a number is the mean of values, but for rounding."""
    mean, size = float(values.mean()), float(abs(values).max())
    return not (math.isfinite(mean) and math.isfinite(value)) or abs(mean - value) <= 1e-6 * size


def _values(values: Any) -> Any:
    """Numbers (n,) in double precision: a tensor, on the CPU, of a tensor, an array of anything else."""
    listed: list[Any] = list(values) if type(values) in (list, tuple) else []
    if wrong := [each for each in listed if isinstance(each, bool | Estimate | None)]:
        hint = ": float(e) is the value of one" if isinstance(wrong[0], Estimate) else ""
        raise ValueError(f"values must be numbers, got {checks.short(wrong[0])}{hint}")
    try:
        if any(isinstance(each, str) for each in listed):
            raise ValueError
        values = values.detach().cpu().double() if hasattr(values, "detach") else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        values, given = np.empty(0), values
    else:
        given = values
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be at least one number, (n,), got {checks.short(given)}")
    return values


def _ambiguous(method: str) -> Any:
    raise ValueError(
        f"the error depends on whether the two were measured in pairs: a.{method}(b, paired=True), or paired=False"
    )


class Quantities:
    """A result whose quantities are its fields: as estimates and as a tidy frame, each of the same names.

    A quantity is a field that is an estimate or has one; a number or a vector (k,) X with a standard error X_stderr, whose
    entries are named X[0] to X[k−1]; or a number alone, whose error is not known. `n` and n_… are counts behind them.

    >>> @dataclass(frozen=True)
    ... class Code(Quantities):
    ...     length: float
    ...     length_stderr: float
    ...     n: int
    >>> code = Code(12.5, 0.2, n=100)
    >>> print(code.estimate("length"), code.to_frame(split="test").columns.tolist())
    12.5 ± 0.2 ['split', 'quantity', 'value', 'stderr', 'n']
    """

    def estimates(self: Any) -> dict[str, Estimate]:
        """Every quantity by its name."""
        names = self._fields if hasattr(self, "_fields") else [each.name for each in fields(self)]
        found: dict[str, Estimate] = {}
        n, over = getattr(self, "n", None), getattr(self, "over", "examples")
        for name in names:
            value, error = getattr(self, name), getattr(self, f"{name}_stderr", None)
            if isinstance(value, Estimate):
                found[name] = value
            elif hasattr(value, "estimate"):
                found[name] = value.estimate()
            elif getattr(value, "ndim", 0) == 1 and error is not None:
                pairs = zip(value.tolist(), error.tolist(), strict=True)
                found |= {f"{name}[{i}]": Estimate(each, its_error, n, over) for i, (each, its_error) in enumerate(pairs)}
            elif _number(value) is not None and not (name == "n" or name.startswith("n_") or name.endswith("_stderr")):
                found[name] = Estimate(value, math.nan if error is None else error, n, over)
        return found

    def estimate(self: Any, name: str) -> Estimate:
        """One quantity by its `name`; `ValueError` with those that there are for another one."""
        found = self.estimates()
        return found[str(checks.choice("a quantity", name, found))]

    def to_frame(self: Any, **columns: Any) -> pd.DataFrame:
        """A tidy frame, one row for each quantity, with further constant `columns`: beta=1.0, seed=0, split="test"."""
        rows = [row_of(name, estimate) for name, estimate in self.estimates().items()]
        return frame_of(rows, **columns)


def row_of(quantity: str, estimate: Estimate, **columns: Any) -> dict[str, Any]:
    """A row of a tidy frame, for `frame_of`.

    - `quantity`: the name of what was measured.
    - `estimate`: its value, standard error and count.
    - `columns`: further columns of this row, such as beta=1.0 or seed=0.

    >>> row_of("rate", Estimate(3.5, 0.1, n=100), beta=1.0)
    {'beta': 1.0, 'quantity': 'rate', 'value': 3.5, 'stderr': 0.1, 'n': 100}
    """
    return {**columns, "quantity": quantity, "value": estimate.value, "stderr": estimate.stderr, "n": estimate.n}


def over_seeds(frame: pd.DataFrame, by: str | Sequence[str] = (), mean_over: str | Sequence[str] = ()) -> Any:
    """Means over the seeds of a tidy frame, with their standard errors over them.

    - `frame`: a tidy frame with a column `seed`, one row for each seed and place of the other columns.
    - `by`: the columns whose every combination has an estimate of its own; without any, there is one estimate.
    - `mean_over`: columns whose places are averaged, with equal weights, before the seeds are: `mean_over="beta"` gives the
      error of a mean over β.

    Returns a `pandas.Series` of `Estimate`s with `by` as its index, in the order of the rows, of which `unstack(sort=False)`
    makes a table; or one `Estimate`. The rows' own errors are not used: of other examples, say, they are another uncertainty.

    Raises `ValueError` where another column varies, which would average different things, where a place of `mean_over` is
    missing for a seed, and where one is there twice.

    >>> frame = tidy([[0.2, 0.4], [0.4, 0.8]], {"seed": [0, 1], "beta": [0.1, 1.0]}, "regret")
    >>> print(over_seeds(frame, mean_over="beta"))
    0.45 ± 0.15
    >>> print(over_seeds(frame, by="beta").map(str).to_dict())
    {0.1: '0.30 ± 0.10', 1.0: '0.6 ± 0.2'}
    """
    table = check_frame(frame, "seed", "value")
    by, mean_over = (check_columns(table, name, given) for name, given in (("by", by), ("mean_over", mean_over)))
    if not len(table) or table["seed"].isna().any():
        raise ValueError("over_seeds needs rows, each with its seed")
    others = [name for name in table if name not in {*by, *mean_over, "seed", *MEASURED}]
    found = {}
    for key, group in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        where = ", ".join(f"{name} = {place}" for name, place in zip(by, key, strict=True)) or "the frame"
        if varies := [name for name in others if group[name].nunique(dropna=False) > 1]:
            raise ValueError(f"{where} has several {', '.join(varies)}: select one, or name it in by or in mean_over")
        cells = group.groupby(["seed", *mean_over], dropna=False)["value"].agg(list)
        if cells.str.len().max() > 1:
            raise ValueError(f"{where} has two rows of one {' and '.join(['seed', *mean_over])}")
        each_seed = cells.groupby("seed").agg(list)
        if (counts := each_seed.str.len()).nunique() > 1 or counts.iloc[0] != len(
            group[mean_over].drop_duplicates() if mean_over else [0]
        ):
            raise ValueError(f"{where} has no value for some {', '.join(mean_over)} of some seed")
        found[key] = Estimate.over_runs([np.mean(values) for values in each_seed])
    if not by:
        return found[()]
    index = pd.MultiIndex.from_tuples(list(found), names=by)
    return pd.Series(list(found.values()), index=index if len(by) > 1 else index.get_level_values(0), dtype=object)
