"""Small helpers on tensors that several rooms need."""

from collections.abc import Iterator

from torch import Tensor

# Values that are encoded or decoded at once, whatever the size of the data: 2 MiB in float32. Larger parts leave the cache
# and are slower.
AT_ONCE = 1 << 19


def double(x: Tensor) -> Tensor:
    """x in float64: on its own device, or on the CPU where the device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def parts(x: Tensor, size: int | None = None, dim: int = 0) -> tuple[Tensor, ...]:
    """x in parts along `dim`, each with as many rows as may be held at once.

    `size` is the number of values that come of each row, by default those of the row itself.
    """
    return x.split(max(1, AT_ONCE // (size or x[0].numel())), dim)


def portions(n: int, size: int) -> Iterator[int]:
    """n draws of `size` values each, in numbers that may be held at once."""
    most = max(1, AT_ONCE // size)
    return (min(most, n - start) for start in range(0, n, most))
