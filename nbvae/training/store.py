"""Runs on disk: a `Run` is a trained model and how it came about; `Run.save` writes it into a folder, `load` reads it.

The folder holds two files. `model.safetensors` is the model's state dict. `run.json` is all else, with the SHA-256 of the
weights file and of what it says itself, so that no damage is loaded without a word.
"""

import base64
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nbvae import objectives
from nbvae._randomness import seeded
from nbvae._tensors import is_dense
from nbvae.training import _record
from nbvae.training._config import TrainConfig
from nbvae.training.stacking import attributes_of

# The key of the weights file's header under which buffers are that are not persistent; a header has a limit, so have they.
_BUFFERS, _MOST = "buffers", 1 << 20
_log = logging.getLogger("nbvae.training")


@dataclass(frozen=True)
class Run:
    """A trained model and how it came about.

    - `model`: the trained module.
    - `objective`: what it was trained on.
    - `config`: how it was trained.
    - `history`: one value per epoch of "loss", "distortion" and "rate": means over the training examples, nats, each measured
      in the step that trained on the example. With `validate_every` also "validation_epoch", after which epochs, from 0, the
      validation split was measured, and "validation_loss", "validation_distortion" and "validation_rate" there.
    - `seconds`: wall time. Models of one `sweep` share theirs equally.

    >>> from nbvae import models
    >>> run = Run(models.VAE((1, 8, 8), 2), objectives.BetaVAE(0.5), TrainConfig(epochs=1), {"loss": [44.5]}, 0.3)
    >>> run.history["loss"][-1]
    44.5
    """

    model: nn.Module = field(repr=False)
    objective: Callable[..., objectives.Loss]
    config: TrainConfig
    history: dict[str, list[float]] = field(repr=False)
    seconds: float

    def save(self, folder: str | Path) -> Path:
        """Write the run into `folder`, which is made if need be, as `model.safetensors` and `run.json`; return the folder.

        A run that is there already is replaced in one step: whenever saving is interrupted, `load` finds the old run or the
        new one. Of a model or an objective of one's own the class's name is kept, and the objective's fields where JSON can
        hold them: `load` has to be given the rest. The device of the weights, the model's mode and which of its parameters
        are frozen are not kept. Buffers that are not persistent, and tensors that are plain attributes, are kept, each up to
        1 MiB.

        Raises `ValueError` where the folder cannot be written to, and for a model with state that is no dense tensor.

        >>> import tempfile
        >>> from nbvae import models
        >>> run = Run(models.VAE((1, 8, 8), 2), objectives.BetaVAE(0.5), TrainConfig(epochs=1), {"loss": [44.5]}, 0.3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in run.save(folder).iterdir())
        ['model.safetensors', 'run.json']
        """
        folder = _path(folder)
        weights = serialized(self.model)
        record = _record.compose(self.model, self.objective, self.config, self.history, self.seconds, weights)
        pending = _pending(folder, record)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(pending, weights)
            _write(folder / "run.json", (json.dumps(record, indent=1) + "\n").encode())
            # From here on the new run is found, as its weights are looked for under both names.
            os.replace(pending, folder / "model.safetensors")
            for left in folder.glob(f"{'[0-9a-f]' * 64}.pending"):
                left.unlink()
        except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
            reason = getattr(problem, "strerror", None) or problem
            raise _record.error(f"no run can be saved in {folder} ({reason}): give a folder that can be written to") from None
        return folder


def load(
    folder: str | Path,
    make: Callable[[], nn.Module] | None = None,
    objective: Callable[..., objectives.Loss] | None = None,
) -> Run:
    """Read a run that `Run.save` wrote; the model is on the CPU, and in training mode if new ones are.

    - `folder`: where the run was saved.
    - `make`: a function without arguments that returns a new model of the architecture that was trained, into which the
      weights are loaded. It may be left out for a `models.VAE` or `models.MultiBetaVAE` with the library's own networks.
    - `objective`: what the run was trained on, or the class of a dataclass, which is made with the fields that were saved. It
      may be left out for an objective of `objectives.NAMED`.

    Weights and history come back bit for bit. The config names the device that the run was trained on, which need not be on
    this machine; it is the one setting in `run.json` that may be edited. Runs that were saved before there were hashes are
    read with a warning, as damage to them cannot be found.

    Raises `FileNotFoundError` where there is no run. Raises `ValueError` where the run is damaged, or was written by a version
    that knows what this one does not; where `make` or `objective` is needed; and where they give something else than was
    trained. Compared are names, shapes and precision of the weights, the classes of the model's parts and the settings of
    torch's layers, and an objective's class and, of a dataclass, those of its fields that are numbers, texts, lists and arrays
    of up to a thousand numbers.

    >>> import tempfile
    >>> from nbvae import models
    >>> run = Run(models.VAE((1, 8, 8), 2), objectives.BetaVAE(0.5), TrainConfig(epochs=1), {"loss": [44.5]}, 0.3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(run.save(folder))
    >>> again.objective, again.history
    (BetaVAE(beta=0.5), {'loss': [44.5]})
    """
    folder = _path(folder)
    _check_given(make, objective)
    content = read_file(folder / "run.json")
    record = _record.parse(content, folder, make, objective)
    if isinstance(objective, type):
        objective = _record.filled(objective, record, folder)
    try:
        state, hidden = read_weights(folder, record)
    except (ValueError, FileNotFoundError):
        if read_file(folder / "run.json") == content:
            raise
        return load(folder, make, objective)  # another run was saved there between the two readings
    _record.check_needed(record, folder, make, objective)
    try:
        config, history = TrainConfig.recorded(**record["config"]), _record.numbers(record["history"])
        trained = _record.rebuilt_objective(record) if objective is None else objective
        model: Any = _record.rebuilt_model(record) if make is None else None
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError) as problem:
        raise _record.refusal(folder, record, problem) from None
    if make is not None:
        with seeded(0):  # torch's stream stays where it is
            model = make()
        if not isinstance(model, nn.Module):
            raise _record.error(f"make must return a new torch module, got {type(model).__name__}")
    problem = fill(model.cpu(), record, state, hidden, given=make is not None)
    if problem and make is not None:
        raise _record.error(f"make must return a new model of the architecture that {folder} holds: {problem}")
    if problem:
        reason = f"its config makes another model ({problem}): call load with make=, a function that returns a new one"
        raise _record.refusal(folder, record, reason, whole="sha256" in record)
    if "sha256" not in record:
        _log.warning("%s was saved by an early version, without a hash: damage to it cannot be found", folder)
    if "problem" in record:
        _log.warning("%s holds a run that diverged: %s", folder, record["problem"])
    return Run(model, trained, config, history, float(record["seconds"]))


def _path(folder: Any) -> Path:
    try:
        return Path(folder)
    except TypeError:
        raise _record.error(f"folder must be the path of a run's folder, got {type(folder).__name__}") from None


def _check_given(make: Any, objective: Any) -> None:
    allowed = "make must be a function without arguments that returns a new model, as lambda: MyModel(8) is"
    if make is not None and (isinstance(make, nn.Module) or not callable(make)):
        raise _record.error(f"{allowed}; got {type(make).__name__}")
    if make is not None:
        try:
            inspect.signature(make).bind()
        except ValueError:  # what is built in may not tell its signature
            pass
        except TypeError as problem:
            raise _record.error(f"{allowed}; {make!r} asks for more ({problem})") from None
    if objective is not None and (isinstance(objective, type) or not callable(objective)) and not is_dataclass(objective):
        raise _record.error(f"objective must be what the run was trained on, as MyLoss(2.0) is; got {objective!r}")


def _pending(folder: Path, record: dict[str, Any]) -> Path:
    """Where weights lie until their record has been written."""
    return folder / f"{record['weights']}.pending"


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_name("saving.part")  # always the same, so that none is left by who is interrupted twice
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        reason = f"{path.parent} holds no run: {path.name} is missing; give the folder that a run was saved in"
        raise FileNotFoundError(_record.line(reason)) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise _record.error(f"{path} cannot be read ({reason}): give a folder that can be") from None


def serialized(model: nn.Module) -> bytes:
    """The weights file: the state dict and, in the header, where they add no names to it, what a model holds beside that."""
    if not isinstance(model, nn.Module):
        raise _record.error(f"only a torch module can be saved, and {type(model).__name__} is none")
    state = model.state_dict()
    for name, value in state.items():
        if not is_dense(value):
            raise _record.error(f"only a model whose state is dense tensors can be saved, and its {name} is none")
    beside = {name: value for name, value in _beside(model).items() if name not in state and value.nbytes <= _MOST}
    header = base64.b64encode(safetensors.torch.save(_copies(beside))).decode()
    return safetensors.torch.save(_copies(state), {_BUFFERS: header})


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own: safetensors takes none that is shared, as that of tied weights is."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def read_weights(folder: Path, record: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict that belongs to the record, and the buffers that are not persistent."""
    hashed = "sha256" in record
    path = folder / "model.safetensors"
    paths = [path, *([_pending(folder, record)] if hashed else [])]
    for each in [each for each in paths if each.is_file()] or [path]:
        content = read_file(each)
        if not hashed or hashlib.sha256(content).hexdigest() == record["weights"]:
            break
    else:
        raise _record.refusal(folder, record, f"{path.name} is not what was saved with run.json (its SHA-256 is another)")
    try:
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        hidden = safetensors.torch.load(base64.b64decode(header[_BUFFERS])) if hashed else {}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as problem:
        raise _record.refusal(folder, record, f"{path.name} is not what was saved ({problem})") from None
    if hashed:
        return state, hidden
    if _BUFFERS in header:
        raise _record.refusal(folder, record, "run.json has lost its hashes")
    # The module that makes a distribution of the decoder's output was called `pixels` in the days of the first format.
    return {name.replace("pixels.", "observation.", int(name.startswith("pixels."))): each for name, each in state.items()}, {}


def fill(model: nn.Module, record: dict[str, Any], state: dict[str, Tensor], hidden: dict[str, Tensor], given: bool) -> str:
    """Load the weights into `model`; return in words what does not fit, empty if all does.

    A model that was `given` must have their precision, one that was rebuilt takes it from them.
    """
    new = model.state_dict()
    for name in sorted(new.keys() | state.keys()):
        if name not in new:
            return f"it has no {name}"
        if name not in state:
            return f"its {name} was not saved"
        if not is_dense(new[name]):
            return f"its {name} is no dense tensor with values yet"
        kinds = [f"{tuple(each.shape)} {each.dtype if given else ''}".rstrip() for each in (new[name], state[name])]
        if kinds[0] != kinds[1]:
            return f"its {name} is {kinds[0]}, the saved one {kinds[1]}"
    if other := _record.other_part(model, record):
        return other
    try:
        model.load_state_dict(state, assign=not given)
    except RuntimeError as problem:
        return str(problem)
    _fill_hidden(model, hidden)
    for name, value in model.state_dict().items():
        if not torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (value.detach(), state[name]))):
            return f"its {name} is not what was loaded into it, as where weights are tied that were not"
    return ""


@torch.no_grad()
def _fill_hidden(model: nn.Module, hidden: dict[str, Tensor]) -> None:
    """Put back what is beside the state dict, where a new model has it: what first use makes, first use will make."""
    new = _beside(model)
    for name, value in hidden.items():
        if name in new and new[name].shape == value.shape:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, value)


def _beside(model: nn.Module) -> dict[str, Tensor]:
    """Buffers, persistent or not, and tensors that are plain attributes."""
    buffers = {name: value for name, value in model.named_buffers(remove_duplicate=False) if is_dense(value)}
    return buffers | attributes_of(model)
