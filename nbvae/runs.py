"""A training run as a record: its frozen config, its result, and both on disk."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

import nbvae
from nbvae import checks, models, objectives

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


@dataclass(frozen=True)
class Run:
    """A trained model and how it came about.

    `history` has one value per epoch of "loss", "distortion" and "rate": means over the training examples, nats, each
    measured in the step that trained on the example. `seconds` is wall time; models of one `sweep` share theirs equally.
    """

    model: nn.Module
    objective: Callable[..., objectives.Loss]
    config: TrainConfig
    history: dict[str, list[float]]
    seconds: float

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `run.json` into `folder` (made if need be); return the folder."""
        folder = Path(folder)
        names = [name for name, kind in objectives.NAMED.items() if type(self.objective) is kind]
        settings = getattr(self.model, "config", None)
        if not names or settings is None:
            raise ValueError("only a model of nbvae.models trained with an objective of objectives.NAMED can be saved")
        record = {
            "nbvae": nbvae.__version__,
            "torch": torch.__version__,
            "model": {"class": type(self.model).__name__, **settings},
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "objective": {"name": names[0], **asdict(self.objective)},  # type: ignore[call-overload]
            "config": asdict(self.config),
            "history": self.history,
            "seconds": self.seconds,
        }
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        return folder


def load(folder: str | Path) -> Run:
    """Read a run that `Run.save` wrote; the model is on the CPU. `FileNotFoundError` or `ValueError` if it cannot be read."""
    folder = Path(folder)
    for name in ("run.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no run: {name} is missing")
    try:
        record = json.loads((folder / "run.json").read_text())
        settings, objective = record["model"], record["objective"]
        model = getattr(models, settings.pop("class"))(**settings).to(getattr(torch, record["dtype"]))
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        trained = objectives.NAMED[objective.pop("name")](**objective)
        return Run(model, trained, TrainConfig(**record["config"]), record["history"], record["seconds"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder} holds a damaged run: {str(error).splitlines()[0]}") from None


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
