"""Bad input, answered in one line: each check returns the value or raises a `ValueError` that says what is allowed.

They belong where a reader's values come in. Behind that, what has passed is trusted.
"""

import inspect
import math
import sys
from collections.abc import Collection, Iterable, Sequence, Sized
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def positive(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number above zero.

    >>> positive("beta", 4)
    4.0
    """
    value = _scalar(value)
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {short(value)}")
    return float(value)


def between(name: str, value: Any, least: float, most: float) -> float:
    """Return `value` as a float if it is a finite number in [least, most].

    - `name`: what the error calls the value.
    - `value`: a number, or an array or tensor without dimensions.
    - `least`, `most`: the limits, which are allowed themselves; −∞ and ∞ do not limit.

    >>> between("share", 0.5, 0, 1)
    0.5
    """
    value = _scalar(value)
    if not (is_finite(value) and least <= float(value) <= most):
        limits = [f">= {least:g}"] * (least > -math.inf) + [f"<= {most:g}"] * (most < math.inf)
        raise ValueError(f"{name} must be a finite number {' and '.join(limits)}, got {short(value)}")
    return float(value)


def not_negative(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number, zero or above.

    >>> not_negative("weight", 0)
    0.0
    """
    return between(name, value, 0, math.inf)


def pair(name: str, value: Any) -> tuple[float, float]:
    """Return `value` as two floats if it holds exactly two finite numbers, 0 < low < high.

    >>> pair("beta_range", [0.1, 10])
    (0.1, 10.0)
    """
    given = value.tolist() if hasattr(value, "tolist") else value
    numbers = [_scalar(number) for number in given] if isinstance(given, Sequence) else []
    if len(numbers) != 2 or not all(map(is_finite, numbers)) or not 0 < numbers[0] < numbers[1]:
        raise ValueError(f"{name} must be two numbers, 0 < low < high; got {short(value)}")
    return float(numbers[0]), float(numbers[1])


def whole(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number.

    - `name`: what the error calls the value.
    - `value`: a number, or an array or tensor without dimensions. True and False are no numbers here.
    - `minimum`: the smallest number that is allowed.

    >>> whole("epochs", 20)
    20
    """
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {short(value)}")
    return int(value)


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Return `values` as a tuple of whole numbers >= 1; a single number is no list of them, an empty list is.

    >>> wholes("hidden", [400, 400])
    (400, 400)
    """
    given = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers >= 1, got {short(values)}")
    return tuple(whole(name, value) for value in given)


def array(name: str, value: Any, shape: Sequence[int | None]) -> np.ndarray:
    """Return a copy of `value` as a float64 array if it holds finite real numbers in the right shape.

    - `name`: what the error calls the value.
    - `value`: whatever numpy makes an array of, or a tensor on any device.
    - `shape`: the shape that is asked for; None stands for any length but zero.

    >>> array("variance", [1, 2], (None,))
    array([1., 2.])
    """
    try:
        given = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        real = given.dtype.kind in "biuf"
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors of a type that numpy has not, or without values
        given, real = np.empty(0), False
    if not real:
        raise ValueError(f"{name} must be an array of real numbers, got {type(value).__name__}")
    wanted = "(" + ", ".join("any" if side is None else str(side) for side in shape) + ("," * (len(shape) == 1)) + ")"
    fits = given.ndim == len(shape) and all(b in (None, a) for a, b in zip(given.shape, shape, strict=True))
    if not fits or not given.size:
        raise ValueError(f"{name} must have the shape {wanted}, got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{name} must be finite, it holds nan or inf")
    return given.astype(np.float64)


def tensor(name: str, value: Any, dims: int) -> Any:
    """Return `value` if it is a torch tensor of `dims` dimensions, with at least one number.

    >>> import torch
    >>> tensor("mean", torch.zeros(3, 2), dims=2).shape
    torch.Size([3, 2])
    """
    if not isinstance(value, torch.Tensor) or value.dim() != dims or not value.numel():
        hint = ": torch.as_tensor makes one of an array or a list" if not isinstance(value, torch.Tensor) else ""
        raise ValueError(f"{name} must be a torch tensor of {dims} dimensions, got {short(value)}{hint}")
    return value


def choice(name: str, value: object, allowed: Collection[object]) -> object:
    """Return `value` if it is one of `allowed`.

    - `name`: what the error calls the value.
    - `value`: anything at all.
    - `allowed`: a list, or a dict whose keys are allowed; the error lists them.

    >>> choice("network", "mlp", ("linear", "mlp"))
    'mlp'
    """
    try:
        known = value in allowed
    except (TypeError, ValueError, RuntimeError):  # an unhashable value, or an array
        known = False
    if not known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {short(value)}")
    return value


def listed(name: str, values: object) -> list:
    """Return `values` as a list of at least one element; a string is no list, nor is a single number.

    >>> listed("seeds", range(3))
    [0, 1, 2]
    """
    values = values.tolist() if hasattr(values, "tolist") else values  # type: ignore[attr-defined]
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        raise ValueError(f"{name} must be a list with at least one value, got {short(values)}")
    return values


def examples(x: Sized, least: int = 1) -> None:
    """Raise `ValueError` if x has fewer than `least` examples along its first axis.

    >>> examples([0.1, 0.2], least=3)
    Traceback (most recent call last):
    ValueError: x must have at least 3 examples, got 2
    """
    if len(x) < least:
        raise ValueError(f"x must have at least {least} example{'s' * (least > 1)}, got {len(x)}")


def seed(name: str, value: object, bits: int = 63) -> int:
    """Return `value` as an int if it is a seed: a whole number of at most `bits` bits, those of torch, or scikit-learn's 32.

    >>> seed("seed", 0)
    0
    """
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, Integral) or not 0 <= int(number) < 2**bits:
        limit = f"2{str(bits).translate(_RAISED)}"
        raise ValueError(f"{name} must be a whole number >= 0 and < {limit}, got {short(value)}")
    return int(number)


def not_callable_with(function: Any, *arguments: Any, **options: Any) -> str | None:
    """Why a function cannot be called with these arguments, as far as its signature tells.

    >>> not_callable_with(len), not_callable_with(len, [])
    ("missing a required argument: 'obj'", None)
    """
    if not callable(function):
        return "it is no function"
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        return line(error)
    except ValueError:  # a callable without a signature
        pass
    return None


def short(value: Any) -> str:
    """What an error calls a value: its `repr` where that is short and on one line, else what kind of thing it is.

    >>> short([1, 2]), short({})
    ('[1, 2]', '{}')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, Real):  # an array or a tensor
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def line(text: object) -> str:
    """The first line of a text, at most 400 characters of it: what an error can pass on of another.

    >>> line("no such file\\nmore"), len(line("no such file, " * 100))
    ('no such file', 400)
    """
    said = str(text).strip().partition("\n")[0]
    return said if len(said) <= 400 else f"{said[:398]} …"


def _scalar(value: Any) -> Any:
    """The number in a tensor or an array without dimensions, anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite real number that a float can hold."""
    # Not math.isfinite, which a whole number beyond the floats makes raise an error of its own.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # pyright: ignore
