"""Small helpers on tensors that several rooms need."""

from torch import Tensor


def double(x: Tensor) -> Tensor:
    """x in float64: on its own device, or on the CPU where the device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()
