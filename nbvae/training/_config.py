"""How to train: the frozen config, and the device that it names."""

from dataclasses import dataclass

import torch

from nbvae import checks

SCHEDULES = ("constant", "cosine", "one_cycle")

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class TrainConfig:
    """How to train: an optimiser at `lr` under a schedule, all randomness from `seed`.

    - `epochs` >= 1 passes over the training split in batches of `batch_size` >= 1 (the last may be smaller);
    - `lr` > 0, the peak of the `schedule`: "constant", "cosine" (to zero) or "one_cycle";
    - `optimizer`: "adam", "adamw" (decay beside the gradient) or "sgd" (without momentum); `weight_decay` >= 0, to zero;
    - `clip` > 0: the most that the norm of a model's gradient may be, None for no limit;
    - `device`: "auto" (CUDA, then MPS, then CPU), or one by name ("cuda:1" too).

    Raises `ValueError` with what is allowed.
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

    def __post_init__(self) -> None:
        for name, value in (
            ("epochs", checks.whole("epochs", self.epochs)),
            ("batch_size", checks.whole("batch_size", self.batch_size)),
            ("lr", checks.positive("lr", self.lr)),
            ("seed", checks.whole("seed", self.seed, minimum=0)),
            ("weight_decay", checks.not_negative("weight_decay", self.weight_decay)),
            ("clip", None if self.clip is None else checks.positive("clip", self.clip)),
        ):
            object.__setattr__(self, name, value)  # plain Python numbers, whatever came in: they are written to JSON
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        device(self.device)


def device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU. `ValueError` if the machine has no such device."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind, _, index = name.partition(":") if isinstance(name, str) else (None, "", "")
    if kind not in available or (index and not index.isdigit()):
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {name!r}")
    if not available[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        here = [each for each, there in available.items() if there]
        raise ValueError(f"device {name!r} is not on this machine, which has: {', '.join(here)}")
    return torch.device(name)
