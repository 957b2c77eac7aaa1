"""Whether two things are the same as far as training can tell, and whether something keeps state."""

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic)
OF_EVERY_MODULE = set(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def settings(thing: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too, and the fields of a dataclass."""
    of_fields = {field.name: getattr(thing, field.name) for field in fields(thing)} if is_dataclass(thing) else {}
    slots = [vars(kind).get("__slots__", ()) for kind in type(thing).__mro__]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    in_slots = {name: getattr(thing, name) for name in names if name[:2] != "__" and hasattr(thing, name)}
    return of_fields | in_slots | dict(getattr(thing, "__dict__", {}))


def is_made_of_settings(thing: Any) -> bool:
    """Whether `settings` holds all that an object is: no tuple, dictionary or partial, which hold more, has become one."""
    kind = type(thing)
    own = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__  # pickled by its attributes
    return own and all(base is object or base.__module__ != "builtins" for base in kind.__mro__)


def same(one: Any, other: Any) -> bool:
    """Whether two things have equal content, however they are nested. No `__eq__` of anyone's own is asked."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return one == other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, functools.partial):
        return same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if inspect.ismethod(one):
        return one.__func__ is other.__func__ and same(one.__self__, other.__self__)
    if inspect.isroutine(one) or isinstance(one, type):
        return False
    return is_made_of_settings(one) and same(settings(one), settings(other))  # of anything else nothing is known


def is_altered(part: nn.Module) -> bool:
    """Whether a module computes something else than its class says: it has a hook, or a method that it alone has."""
    own = any(callable(value) and not isinstance(value, nn.Module) for value in vars(part).values())
    return own or any(getattr(part, hooks) for hooks in _HOOKS)


@contextlib.contextmanager
def sandbox(modules: Sequence[nn.Module]) -> Iterator[Callable[[], bool]]:
    """Forward passes inside leave nothing behind in attributes that are neither parameters nor buffers.

    What is yielded says whether they changed one. Tensors do not count: they are what a pass computes, not what it keeps.
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    before = [dict(vars(part)) for part in parts]
    for part, attributes in zip(parts, before, strict=True):
        for name, value in attributes.items():
            if name not in OF_EVERY_MODULE and not isinstance(value, (Tensor, nn.Module, *_PLAIN)):
                vars(part)[name] = copied(value)

    def changed() -> bool:
        return any(
            not isinstance(value, Tensor) and not same(value, attributes.get(name, OF_EVERY_MODULE))
            for part, attributes in zip(parts, before, strict=True)
            for name, value in vars(part).items()
            if name not in OF_EVERY_MODULE
        )

    try:
        yield changed
    finally:
        for part, attributes in zip(parts, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)


def copied(thing: Any) -> Any:
    """A deep copy, or the thing itself where it has none."""
    try:
        return copy.deepcopy(thing)
    except Exception:
        return thing
