"""Small helpers on tensors that several rooms need."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Values that are encoded or decoded at once, whatever the size of the data: on a CPU 1 MiB in float32, which stays in the
# cache, and elsewhere 64 MiB.
AT_ONCE, ELSEWHERE = 1 << 18, 64


def double(x: Tensor) -> Tensor:
    """x in float64: on its own device, or on the CPU where the device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor that a file of safetensors can hold."""
    return (
        isinstance(value, Tensor)
        and not (nn.parameter.is_lazy(value) or value.is_meta or value.is_quantized)
        and value.layout == torch.strided
        and value.dtype not in (torch.complex32, torch.complex128)
    )


def parts(x: Tensor, like: Tensor | None = None, size: int | None = None, dim: int = 0) -> Iterator[Tensor]:
    """x in parts along `dim`, each with as many rows as may be held at once, on the device and in the precision of `like`.

    `size` is the number of values that come of each row, by default those of the row itself.
    """
    like = x if like is None else like
    return (part.to(like) for part in x.split(_rows(size or x[0].numel(), like.device), dim))


def portions(n: int, part: Tensor) -> Iterator[int]:
    """n draws of as many values as `part` has, in numbers that may be held at once."""
    most = _rows(part.numel(), part.device)
    return (min(most, n - start) for start in range(0, n, most))


def _rows(size: int, place: torch.device) -> int:
    return max(1, AT_ONCE * (1 if place.type == "cpu" else ELSEWHERE) // size)
