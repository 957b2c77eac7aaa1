"""Bad input, answered in one line: each check returns the value or raises a `ValueError` that says what is allowed."""

import math
from collections.abc import Collection, Iterable, Sized
from numbers import Integral, Real
from typing import Any


def _plain(value: Any) -> Any:
    """The number in a tensor or an array without dimensions, anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def positive(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number above zero."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def between(name: str, value: object, least: float, most: float) -> float:
    """Return `value` as a float if it is a finite number in [least, most]; infinite limits do not limit."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not least <= float(value) <= most:
        limits = [f">= {least:g}"] * (least > -math.inf) + [f"<= {most:g}"] * (most < math.inf)
        raise ValueError(f"{name} must be a finite number {' and '.join(limits)}, got {value!r}")
    return float(value)


def not_negative(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number, zero or above."""
    return between(name, value, 0, math.inf)


def whole(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


def choice(name: str, value: object, allowed: Collection[object]) -> object:
    """Return `value` if it is one of `allowed`."""
    try:
        known = value in allowed
    except TypeError:  # an unhashable value against a dict or set
        known = False
    if not known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")
    return value


def listed(name: str, values: object) -> list:
    """Return `values` as a list of at least one element; a string is no list, nor is a single number."""
    values = values.tolist() if hasattr(values, "tolist") else values  # type: ignore[attr-defined]
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        raise ValueError(f"{name} must be a list with at least one value, got {values!r}")
    return values


def examples(x: Sized, least: int = 1) -> None:
    """Raise `ValueError` if x has fewer than `least` examples along its first axis."""
    if len(x) < least:
        raise ValueError(f"x must have at least {least} example{'s' * (least > 1)}, got {len(x)}")
