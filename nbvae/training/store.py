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
from nbvae import models, objectives
from nbvae.training._config import TrainConfig


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
