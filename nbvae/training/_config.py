"""How to train: the frozen config, and the device that it names."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from nbvae import checks

# How the learning rate goes, as `TrainConfig` describes it.
SCHEDULES = ("constant", "cosine", "one_cycle")

# The optimisers by their names in `TrainConfig`.
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

# The kinds of devices that `device` takes; "auto" is the fastest that is there, and "cuda:1" names one of several.
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class TrainConfig:
    """How to train: an optimiser at `lr` under a schedule, all randomness from `seed`.

    - `epochs`: passes over the training split, >= 1.
    - `batch_size`: examples of a step, >= 1. The last batch of an epoch may be smaller.
    - `lr`: the learning rate, > 0, which is the peak of the schedule.
    - `schedule`: "constant", "cosine" (to zero) or "one_cycle".
    - `seed`: of batches, noise and binarisation, a whole number from 0 to 2⁶³ − 1.
    - `device`: "auto" (CUDA, then MPS, then CPU), or one by name ("cuda:1" too).
    - `optimizer`: "adam", "adamw" (decay beside the gradient) or "sgd" (without momentum).
    - `weight_decay`: towards zero, >= 0.
    - `clip`: the most that the norm of a model's gradient may be, > 0; None for no limit.
    - `validate_every`: after every so many epochs the loss, distortion and rate of the validation split are measured, in
      evaluation mode, and noted in the history as "validation_loss" and so on; None for never. An objective with a warm-up is
      measured as it is in the last step of all `epochs`.
    - `patience`: training ends after so many validations in a row without a smaller loss, and the model gets its state of the
      smallest, which is the first smallest "validation_loss"; None to train all epochs and keep the last. Best with schedule
      "constant": the others are made for all `epochs`.

    Raises `ValueError` with what is allowed.

    >>> TrainConfig(epochs=3, lr=3e-3, schedule="cosine").batch_size
    128
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0
    device: str = "auto"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float | None = None
    validate_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("epochs", checks.whole("epochs", self.epochs)),
            ("batch_size", checks.whole("batch_size", self.batch_size)),
            ("lr", checks.positive("lr", self.lr)),
            ("seed", checks.seed("seed", self.seed)),
            ("weight_decay", checks.not_negative("weight_decay", self.weight_decay)),
            ("clip", None if self.clip is None else checks.positive("clip", self.clip)),
            ("validate_every", None if self.validate_every is None else checks.whole("validate_every", self.validate_every)),
            ("patience", None if self.patience is None else checks.whole("patience", self.patience)),
        ):
            object.__setattr__(self, name, value)  # plain Python numbers, whatever came in: they are written to JSON
        if self.patience and not self.validate_every:
            raise ValueError("patience counts validations: give validate_every as well")
        if (self.validate_every or 0) > self.epochs:
            raise ValueError(f"validate_every must be at most epochs, {self.epochs}, got {self.validate_every}")
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        device(self.device)

    @classmethod
    def recorded(cls, **settings: Any) -> "TrainConfig":
        """The config of a training that is over, of these `settings`: its device need not be on this machine."""
        name = settings.pop("device", cls.device)
        config = cls(**settings, device="cpu")
        _parts(name)
        object.__setattr__(config, "device", name)
        return config


def device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU. `ValueError` if the machine has no such device.

    >>> device("cpu")
    device(type='cpu')
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, index = _parts(name)
    if kind == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        here = [each for each, there in available.items() if there]
        raise ValueError(f"device {name!r} is not on this machine, which has: {', '.join(here)}")
    return torch.device(name)


def _parts(name: object) -> tuple[str, str]:
    """The kind in a device's name and its index, which may be empty. `ValueError` for what names no device."""
    parts = re.fullmatch(r"(auto)|(cpu|cuda|mps)(?::(0|[1-9][0-9]?))?", name) if isinstance(name, str) else None
    if parts is None:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {checks.short(name)}")
    return parts[1] or parts[2], parts[3] or ""
