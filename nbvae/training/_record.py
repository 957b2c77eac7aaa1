"""What `run.json` says of a run, and what can be made of it again. Nothing that a record names is imported or called."""

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nbvae
from nbvae import models, objectives
from nbvae._randomness import seeded
from nbvae._sameness import is_altered
from nbvae.models import likelihoods
from nbvae.training._config import TrainConfig

FORMAT = 2
_log = logging.getLogger("nbvae.training")

# What a record holds. The first format had no more than these and a "dtype": it can be read, and not be verified.
_FIRST = {
    "nbvae": str,
    "torch": str,
    "model": dict,
    "objective": dict,
    "config": dict,
    "history": dict,
    "seconds": (int, float),
}
_SINCE = {"format": int, "modules": dict, "weights": str, "sha256": str}
# What the record of a run in a store holds beside that, the problem if it diverged.
_STORED = {"key": str, "problem": str}

# The models that their own `config` rebuilds, unless it is None.
_MODELS = {"VAE": models.VAE, "MultiBetaVAE": models.MultiBetaVAE}
_LIKELIHOODS = tuple(likelihoods.LIKELIHOODS.values())
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def error(reason: str) -> ValueError:
    return ValueError(line(reason))


def line(text: str) -> str:
    """Names and other people's messages may have line breaks in them."""
    return " ".join(text.splitlines())


def refusal(folder: Path, record: Any, reason: object, whole: bool = False) -> ValueError:
    """Why the run in `folder` cannot be read: another version wrote it, or, if its files are not known to be whole, damage."""
    written = record.get("nbvae") if isinstance(record, dict) else None
    if isinstance(written, str) and written != nbvae.__version__:
        who = f"{folder} holds a run written by nbvae {written}, this is {nbvae.__version__}"
        return error(f"{who}: {reason}; load it with nbvae {written}, or restore it from a copy if it is damaged")
    if whole:
        return error(f"{folder} holds a run that cannot be rebuilt from its files: {reason}")
    return error(f"{folder} holds a damaged run: {reason}; restore it from a copy, or delete it and train it again")


def compose(
    model: nn.Module,
    objective: Any,
    config: TrainConfig,
    history: Any,
    seconds: float,
    weights: bytes,
    stored: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The record of a run whose weights file is `weights`: with the hash of that and, last, its own.

    `stored`: what is known of it in a store.
    """
    if not isinstance(config, TrainConfig):
        raise error(f"a run's config must be a training.TrainConfig, got {type(config).__name__}")
    if not callable(objective):
        raise error(f"a run's objective must be a function of (model, x), got {objective!r}")
    record = {
        "format": FORMAT,
        "nbvae": nbvae.__version__,
        "torch": torch.__version__,
        "model": _model_entry(model),
        "modules": _modules(model),
        "objective": _objective_entry(objective),
        "config": asdict(config),
        "history": numbers(history),
        "seconds": numbers({"": [seconds]})[""][0],
        "weights": hashlib.sha256(weights).hexdigest(),
        **(stored or {}),
    }
    record = json.loads(json.dumps(record))  # as it will be read: lists for tuples, strings for keys
    return record | {"sha256": _digest(record)}


def parse(content: bytes, folder: Path, make: Any = None, objective: Any = None) -> dict[str, Any]:
    """The record in the bytes of `run.json`: whole, verified, and known in every part that is not given."""
    try:
        record = json.loads(content.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as problem:
        raise refusal(folder, {}, f"run.json is not what was saved ({problem})") from None
    if not isinstance(record, dict):
        raise refusal(folder, {}, "run.json is no record")
    hashed = not record.keys().isdisjoint(_SINCE)
    if hashed and record.get("format") != FORMAT:
        raise refusal(folder, record, f"its format {record.get('format')!r} is not known, formats up to {FORMAT} are")
    for name, kind in (_FIRST | (_SINCE if hashed else {"dtype": str})).items():
        if not isinstance(record.get(name), kind):
            raise refusal(folder, record, f"run.json lacks {name!r}")
    for name, kind in _STORED.items():
        if not isinstance(record.get(name, ""), kind):
            raise refusal(folder, record, f"the {name!r} in run.json is none")
    if unknown := _unknown(record, make, objective):
        raise refusal(folder, record, f"not known here: {', '.join(unknown)}")
    if hashed and record["sha256"] != _digest(record):
        raise refusal(folder, record, "run.json was changed after it was saved (its SHA-256 is another)")
    if not hashed and not (isinstance(record["model"].get("class"), str) and isinstance(record["objective"].get("name"), str)):
        raise refusal(folder, record, "run.json lacks the name of its model's class or of its objective")
    if not hashed and "module" in record["model"].keys() | record["objective"].keys():
        raise refusal(folder, record, "run.json has lost its hashes")
    return record


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of what a record says: of all but itself and the device, which changes nothing that is loaded."""
    said = {name: value for name, value in record.items() if name != "sha256"}
    said["config"] = {name: None if name == "device" else value for name, value in record["config"].items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _unknown(record: dict[str, Any], make: Any, objective: Any) -> list[str]:
    found = [repr(name) for name in record.keys() - _FIRST.keys() - _SINCE.keys() - _STORED.keys() - {"dtype"}]
    parts: list[tuple[str, Any, dict[str, Any]]] = [("config", TrainConfig, record["config"])]
    for part, key, known, given in (("model", "class", _MODELS, make), ("objective", "name", objectives.NAMED, objective)):
        settings = dict(record[part])
        if given is None and "module" not in settings:
            name = settings.pop(key, None)
            kind = known.get(name) if isinstance(name, str) else None
            found += [] if kind else [f"{part} {name!r}"]
            parts += [(part, kind, settings)] if kind else []
    for part, kind, settings in parts:
        found += [f"{part} setting {name!r}" for name in settings.keys() - inspect.signature(kind).parameters.keys()]
    return sorted(found)


def _model_entry(model: nn.Module) -> dict[str, Any]:
    """Class and config of a model that they rebuild; of any other also, as the mark of that, the module of its class.

    A model whose parts have hooks or methods of their own is another one.
    """
    kind, config = type(model), getattr(model, "config", None)
    if _MODELS.get(kind.__name__) is kind and config is not None and not any(map(is_altered, model.modules())):
        return {"class": kind.__name__, **config}
    return {"class": kind.__qualname__, "module": kind.__module__, "config": config if _is_json(config) else None}


def _objective_entry(objective: Any) -> dict[str, Any]:
    """Name and fields of an objective that they rebuild; of any other its class or function, its module and its fields."""
    for name, ours in objectives.NAMED.items():
        if type(objective) is ours:
            return {"name": name, **asdict(objective)}
    kind, values = type(objective), getattr(objective, "__dict__", {})
    if isinstance(objective, functools.partial):
        entry = _objective_entry(objective.func)
        arguments = {str(i): value for i, value in enumerate(objective.args)} | objective.keywords
        return entry | {"fields": entry.get("fields", {}) | _plain(arguments)}
    if hasattr(objective, "__qualname__"):
        kind, values = objective, {}
    elif is_dataclass(objective):
        values = {field.name: getattr(objective, field.name) for field in fields(objective) if field.init and field.compare}
    shown = {name: value for name, value in values.items() if not name.startswith("_")}
    return {"name": kind.__qualname__, "module": str(kind.__module__), "fields": _plain(shown)}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Those settings that JSON can hold, arrays and tensors of up to a thousand numbers among them."""
    small = {
        name: value.tolist() if isinstance(value, torch.Tensor | np.ndarray | np.generic) and _count(value) <= 1000 else value
        for name, value in values.items()
    }
    return {name: value for name, value in small.items() if _is_json(value)}


def _count(value: Any) -> int:
    """How many numbers there are in an array, a tensor or a number of numpy's."""
    return value.numel() if isinstance(value, torch.Tensor) else value.size


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _shown(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.") or isinstance(part, _LIKELIHOODS)


def _modules(model: nn.Module) -> dict[str, str]:
    """The classes of a model's parts, with the settings of torch's and of likelihoods: what no weights tell.

    Without the library's own layers, whose names may change while they compute the same.
    """
    return {
        name: type(part).__name__ + (f"({part.extra_repr()})" if _shown(part) else "")
        for name, part in model.named_modules(remove_duplicate=False)
        if not (name and type(part).__module__.startswith("nbvae.")) or isinstance(part, _LIKELIHOODS)
    }


def numbers(history: Any) -> dict[str, list[float]]:
    """A history as lists of plain floats."""
    try:
        return {str(name): [float(value) for value in values] for name, values in history.items()}
    except (TypeError, ValueError, AttributeError):
        raise error("a run's history must hold a list of numbers under each name") from None


def check_needed(record: dict[str, Any], folder: Path, make: Any, objective: Any) -> None:
    """Raise `ValueError` where more is needed than the record, and where `objective` is another than the run's."""
    model, trained = record["model"], record["objective"]
    needed = []
    if make is None and "module" in model:
        needed.append(f"make=, a function that returns a new {model['module']}.{model.get('class')}")
    if objective is None and "module" in trained:
        needed.append(f"objective=, the {_text(trained)} that it was trained on")
    if needed:
        raise error(f"{folder} holds a run that cannot be rebuilt from its files: call load with {', and '.join(needed)}")
    if objective is not None:
        given = json.loads(json.dumps(_objective_entry(objective)))
        fixed = is_dataclass(objective) or isinstance(objective, functools.partial) or hasattr(objective, "__qualname__")
        if not _same_objective(given, trained, fixed):
            raise error(f"objective must be the one that {folder} was trained on, {_text(trained)}; got {_text(given)}")
        if not _same_objective(given, trained, True):  # state that it keeps, or another number: its class does not tell
            _log.warning("%s was trained on %s, and is loaded with %s", folder, _text(trained), _text(given))


def _same_objective(given: dict[str, Any], trained: dict[str, Any], compare: bool) -> bool:
    """Whether two entries are of one objective.

    One's own class or function may have moved to another module since. What is no dataclass may keep state in its attributes.
    """
    if "module" not in trained or "module" not in given:
        return given == trained
    names = [each["name"].rpartition(".")[2] for each in (given, trained)]
    return names[0] == names[1] and (not compare or _equal(given["fields"], trained["fields"]))


def _equal(one: Any, other: Any) -> bool:
    """Whether two values that JSON has held are equal: 1 is 1.0, nan is nan, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and (one == other or (one != one and other != other))


def filled(objective: type, record: dict[str, Any], folder: Path) -> Any:
    """An object of a dataclass with the fields that the record has."""
    saved = record["objective"].get("fields", {})
    try:
        return objective(**saved)
    except (TypeError, ValueError) as problem:
        raise error(f"{objective.__name__} cannot be made with what {folder} has of it, {saved}: {problem}") from None


def _text(entry: dict[str, Any]) -> str:
    """An objective's entry as it would be written in Python."""
    name = entry["name"] if "module" not in entry else f"{entry['module']}.{entry['name']}"
    settings = entry.get("fields", {key: value for key, value in entry.items() if key not in ("name", "module")})
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def rebuilt_model(record: dict[str, Any]) -> nn.Module:
    """A new model of the record's architecture, its weights whatever they are."""
    settings = dict(record["model"])
    with seeded(0):  # torch's stream stays where it is
        model = _MODELS[settings.pop("class")](**settings)
    return model.to(_DTYPES[record["dtype"]]) if "dtype" in record else model


def rebuilt_objective(record: dict[str, Any]) -> Callable[..., objectives.Loss]:
    settings = dict(record["objective"])
    return objectives.NAMED[settings.pop("name")](**settings)


def other_part(model: nn.Module, record: dict[str, Any]) -> str:
    """The first part in which `model` is another than the record's, in words; empty if there is none, or none is known."""
    made = _modules(model)
    saved = record.get("modules", made)
    bare = record["torch"].split("+")[0] != torch.__version__.split("+")[0]  # another torch may print its settings otherwise
    for name in sorted(made.keys() | saved.keys()):
        pair = [each.get(name, "missing").partition("(" if bare else "\0")[0] for each in (made, saved)]
        if pair[0] != pair[1]:
            return f"its {name or 'class'} is {pair[0]}, the saved one's is {pair[1]}"
    settings = [_settings(each) for each in (json.loads(json.dumps(_model_entry(model))), record["model"])]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        pair = [each.get(name, "missing") for each in settings]
        if pair[0] != pair[1]:
            return f"its {name} is {pair[0]!r}, the saved one's is {pair[1]!r}"
    return ""


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    """The config in a model's entry, if it has one: what neither weights nor parts tell, such as a range of βs."""
    if "module" not in entry:
        return {name: value for name, value in entry.items() if name != "class"}
    return entry["config"] if isinstance(entry.get("config"), dict) else {}
