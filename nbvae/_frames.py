"""Tidy frames: `pandas.DataFrame`s of one measured number in each row, made, checked and compared in pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from nbvae import checks

# The columns of every tidy frame, of which each has those that apply.
COLUMNS = ("study", "dataset", "objective", "beta", "seed", "split", "quantity", "value", "stderr", "n")
MEASURED = COLUMNS[-3:]


def frame_of(rows: Sequence[Mapping[str, Any]], **columns: Any) -> pd.DataFrame:
    """A tidy frame of rows, each with a quantity, value, stderr and n, and of `columns` that are the same in all of them.

    - `rows`: mappings from names of columns to values, as `results.row_of` makes them.
    - `columns`: names and values of columns that are the same in all rows; one that is None is left out.

    Columns stand in the order of `COLUMNS`, others before the quantity; those that no row has a value for are left out.
    Raises `ValueError` for a constant column that is no single value or that the rows have already.

    >>> rows = [{"quantity": "rate", "value": 3.5, "stderr": 0.1, "n": 100}]
    >>> print(frame_of(rows, dataset="digits", seed=0, network="mlp").to_string(index=False))
    dataset  seed network quantity  value  stderr   n
     digits     0     mlp     rate    3.5     0.1 100
    """
    rows = list(rows) if isinstance(rows, Iterable) else []
    if not rows or not all(isinstance(row, Mapping) and "quantity" in row for row in rows):
        raise ValueError("rows must be mappings from names of columns to values, at least one, each with a quantity")
    frame: Any = pd.DataFrame(rows)
    frame = frame.drop(columns=[name for name in frame if name not in MEASURED and frame[name].isna().all()])
    for name, value in columns.items():
        if name in frame:
            raise ValueError(f"{name} is a column of the rows themselves, and cannot be given for all of them")
        if not (value is None or isinstance(value, str | Real)):
            raise ValueError(f"{name} must be one value for all rows, a number or a string; got {checks.short(value)}")
        if value is not None:
            frame[name] = value
    frame = frame.astype({name: "float64" for name in ("value", "stderr") if name in frame})  # None is nan
    for name in {"seed", "n"} & set(frame):  # whole numbers, also where one is missing
        frame[name] = frame[name].astype("Int64" if frame[name].isna().any() else "int64")
    known = [name for name in COLUMNS if name in frame]
    place = known.index("quantity")
    return frame[[*known[:place], *(name for name in frame if name not in COLUMNS), *known[place:]]]


def tidy(values: Any, axes: Mapping[str, Sequence[Any] | np.ndarray], quantity: str, **columns: Any) -> pd.DataFrame:
    """A tidy frame of an array, one row for each entry.

    - `values`: the array; its axes are those of `axes`, in their order.
    - `axes`: the name of each axis, a column of the frame, and what its places stand for.
    - `quantity`: what the values are.
    - `columns`: further columns, the same in all rows.

    Raises `ValueError` if the shape is not that of the axes.

    >>> frame = tidy([[0.2, 0.4], [0.4, 0.8]], {"seed": [0, 1], "beta": [0.1, 1.0]}, "regret", dataset="digits")
    >>> print(frame.to_string(index=False))
    dataset  beta  seed quantity  value  stderr    n
     digits   0.1     0   regret    0.2     NaN <NA>
     digits   1.0     0   regret    0.4     NaN <NA>
     digits   0.1     1   regret    0.4     NaN <NA>
     digits   1.0     1   regret    0.8     NaN <NA>
    """
    if not isinstance(axes, Mapping):
        raise ValueError(f"axes must be a dictionary of the name and the places of each axis, got {checks.short(axes)}")
    array = np.asarray(values, dtype=np.float64)
    shape = tuple(len(each) for each in axes.values())
    if array.shape != shape or not array.size:
        raise ValueError(f"the axes {', '.join(axes)} have {shape} places, the values the shape {array.shape}")
    grid = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
    rows = [
        {**place, "quantity": quantity, "value": value, "stderr": math.nan, "n": None}
        for place, value in zip(grid.to_dict("records"), array.ravel().tolist(), strict=True)
    ]
    return frame_of(rows, **columns)


def paired(frame: pd.DataFrame, **baseline: Any) -> pd.DataFrame:
    """The differences of a tidy frame's rows to a baseline, in pairs.

    - `frame`: a tidy frame.
    - `baseline`: a column and its value that selects the rows to compare with, `objective="vae"`; several select together.

    Each of the other rows has the value of its partner taken away: the one row of the baseline that agrees with it in every
    other column, β and seed included. So `over_seeds(paired(frame, objective="vae"), by="objective")` has the errors of paired
    differences. The standard errors of single differences are not known: nan.

    Raises `ValueError` where a row has no partner, or two; drop columns that need not agree, such as a learning rate.

    >>> from nbvae.results import over_seeds
    >>> one = tidy([1.0, 3.0], {"seed": [0, 1]}, "loss", objective="vae")
    >>> two = tidy([1.5, 3.4], {"seed": [0, 1]}, "loss", objective="beta_vae")
    >>> print(over_seeds(paired(pd.concat([one, two]), objective="vae"), by="objective")["beta_vae"])
    0.45 ± 0.05
    """
    table = check_frame(frame, "value")
    names = check_columns(table, "baseline", list(baseline))
    if not names or {"quantity", *MEASURED} & set(names):
        raise ValueError('a baseline is a column that tells models apart and its value there, as in objective="vae"')
    chosen = np.logical_and.reduce([table[name] == value for name, value in baseline.items()])
    text = ", ".join(f"{name} = {value}" for name, value in baseline.items())
    keys = [name for name in table if name not in (*names, *MEASURED)]
    base, rest = table[chosen], table[~chosen]
    if not len(base):
        raise ValueError(f"no row has {text}; there are {', '.join(str(each) for each in table[names[0]].unique())}")
    if base.duplicated(keys).any() or rest.duplicated([*names, *keys]).any():
        raise ValueError(f"two rows agree in {', '.join(keys)}: none of them is the partner")
    both = rest.merge(base[[*keys, "value"]], on=keys, how="left", suffixes=("", "_base"), indicator=True)
    lonely = both[both["_merge"] != "both"]
    if len(lonely):
        where = ", ".join(f"{name} = {lonely[name].iloc[0]}" for name in [*names, *keys])
        raise ValueError(f"no row of {text} is the partner of {where}")
    return both.assign(value=both["value"] - both["value_base"], stderr=math.nan)[list(dict.fromkeys([*table, "stderr"]))]


def check_frame(frame: Any, *names: str) -> Any:
    """The frame, if it is one and has the columns `names`; else `ValueError`."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"needs a tidy frame, as to_frame() makes one, got {type(frame).__name__}")
    if missing := [name for name in names if name not in frame]:
        raise ValueError(f"the frame has no column {missing[0]}; it has {', '.join(map(str, frame))}")
    return frame


def check_columns(frame: pd.DataFrame, what: str, names: str | Iterable[str]) -> list[str]:
    """`names` as a list, if each is a column of the frame; else `ValueError`."""
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in frame]:
        raise ValueError(
            f"{what} must be among the columns of the frame, {', '.join(map(str, frame))}; got {checks.short(unknown[0])}"
        )
    return names
