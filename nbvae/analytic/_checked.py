"""What is given to the closed forms, as arrays that were looked at; and water-filling, which several of them need."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Array = ArrayLike | Sequence | float  # whatever numpy.asarray takes
# A number in, a number out; an array in, an array of the same shape out.
Numbers = TypeVar("Numbers", float, Float[np.ndarray, "*levels"])


def fill(values: np.ndarray, level: np.ndarray) -> tuple[Any, Any]:
    """Rate and MSE of reverse water-filling on `values` (n,), each with the shape of `level`."""
    level = level[..., None]
    rate, mse = 0.5 * np.log(np.maximum(values, level) / level).sum(-1), np.minimum(values, level).sum(-1)
    return like(rate), like(mse)


def sums_after(values: np.ndarray) -> np.ndarray:
    """T_a = Σ_{i>a} λ_i for a = 0 … n, summed from the smallest so that a small rest is exact."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def like(result: Any) -> Any:
    """A float for a single number, else the array: the kind of `Numbers` that came in."""
    return result if np.ndim(result) else float(result)


def real(name: str, value: Array) -> tuple[np.ndarray, float]:
    """`value` as a finite float64 array, and the machine precision that it came with."""
    try:
        array = np.asarray(value)
        epsilon = np.finfo(array.dtype if array.dtype.kind == "f" else float).eps
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its dtype is {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, ragged lists, tensors on a device or with gradients
        raise ValueError(f"{name} must be an array of real numbers: {str(error).splitlines()[0]}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, it holds nan or inf")
    return array, float(epsilon)


def positive(name: str, value: Array) -> np.ndarray:
    """`value` as a float64 array, all of it finite and above zero."""
    array, _ = real(name, value)
    if not (array > 0).all():
        raise ValueError(f"{name} must be > 0, got {array.min():g}")
    return array


def shaped(name: str, value: Array | None, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array of the given shape, zeros for None."""
    array = np.zeros(shape) if value is None else real(name, value)[0]
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    return array


def covariance(name: str, value: Array) -> np.ndarray:
    """`value`, a covariance or the spectrum of a diagonal one, as a matrix (n, n) without negative eigenvalues."""
    matrix, epsilon = real(name, value)
    matrix = symmetric(name, np.diag(matrix) if matrix.ndim == 1 else matrix, epsilon)
    no_negative(name, np.linalg.eigvalsh(matrix), epsilon)
    return matrix


def symmetric(name: str, value: np.ndarray, epsilon: float) -> np.ndarray:
    if value.ndim != 2 or value.shape[0] != value.shape[1] or not value.size:
        raise ValueError(f"{name} must be a square matrix (n, n) or a spectrum (n,), got the shape {value.shape}")
    if abs(value - value.T).max() > math.sqrt(epsilon) * abs(value).max():
        raise ValueError(f"{name} must be symmetric, it differs from its transpose by {abs(value - value.T).max():.3g}")
    return (value + value.T) / 2


def spectrum(name: str, values: np.ndarray, epsilon: float) -> np.ndarray:
    """`values` (n,) in descending order, with what is zero up to round-off set to zero."""
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a spectrum of the shape (n,), got the shape {values.shape}")
    values = np.sort(values)[::-1]
    tolerance = no_negative(name, values, epsilon)
    if values[0] <= 0:
        raise ValueError(f"{name} must not be zero: data without variance have nothing to encode")
    return np.where(values > tolerance, values, 0.0)


def no_negative(name: str, values: np.ndarray, epsilon: float) -> float:
    """What counts as zero beside these eigenvalues; `ValueError` if one is below minus that."""
    tolerance = 10 * len(values) * epsilon * float(abs(values).max())  # rounding makes about a tenth of this
    if values.min() < -tolerance:
        raise ValueError(f"{name} must have no negative eigenvalue, got {values.min():.6g}")
    return tolerance
