"""A hash of the content of things, however they are nested, and of the code of functions and classes.

Of code there are three kinds. Torch's, this library's and Python's own go by their names. A class or function of an installed
package is hashed for itself. One's own is hashed with the functions, classes and values that it names, wherever these stand.
Hashed is what Python runs, so that comments count as little as files that were edited and not loaded again; another Python may
make other hashes.
"""

import copyreg
import dis
import enum
import functools
import hashlib
import logging
import os
import sys
import sysconfig
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions.utils import lazy_property
from torch.utils.hooks import RemovableHandle

import nbvae
from nbvae._sameness import settings
from nbvae._tensors import is_dense

_KNOWN = tuple(each + os.sep for each in (str(Path(nbvae.__file__).parent), str(Path(torch.__file__).parent)))
_STANDARD = tuple(each + os.sep for each in {sysconfig.get_path("stdlib"), os.path.dirname(os.__file__)})

_PLAIN = {bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), range, slice}
_PLAIN |= {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo, torch.iinfo}
_OPAQUE = (weakref.ref, weakref.ProxyType, RemovableHandle, logging.Logger)  # they decide nothing, or hold what others do
_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
)
_CONTAINERS = {dict, OrderedDict, list, types.MappingProxyType}
_COPIED = ("__reduce__", "__reduce_ex__", "__getstate__")
_HEAP = 1 << 9  # the flag of a class that was made at run time, as by a class statement
_OF_EVERY_MODULE = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
# Of a class: what it is called, says of itself and derives from the rest.
_BESIDE = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__match_args__", "__orig_bases__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__dataclass_fields__"),
    *(
        "__dataclass_params__",
        "__abstractmethods__",
        "_abc_impl",
        "__parameters__",
        "__firstlineno__",
        "__static_attributes__",
        "__slotnames__",
    ),
}


class Opaque(Exception):
    """A thing of which no content is known."""


class Digest:
    """SHA-256 over the content of things, however they are nested, and over the code of functions and classes.

    Tensors that `held` modules have as parameters, buffers or attributes are left out, and others are known by how often they
    were changed in place, not by their values: that is for `Watch`, which looks often.
    """

    def __init__(self, held: Sequence[nn.Module] | None = None):
        self._words: list[Any] = []
        self._seen: dict[int, tuple[int, Any]] = {}  # the things too: an id is a thing's own only while it lives
        self._quick = held is not None
        self._held = {id(part) for module in held or () for part in module.modules()}
        for module in held or ():
            for tensor in (*module.parameters(), *module.buffers()):
                self._seen[id(tensor)] = -1, tensor

    def hexdigest(self) -> str:
        digest = hashlib.sha256()
        for word in self._words:
            content = word if isinstance(word, bytes | memoryview) else str(word).encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(content))
            digest.update(content)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and self._words == other._words

    def add(self, thing: Any) -> None:
        kind = type(thing)
        if kind in _PLAIN:
            self._say(kind.__name__, repr(thing))
        elif isinstance(thing, np.generic):
            self._say(str(thing.dtype), thing.tobytes())
        elif isinstance(thing, tuple):
            self._say("tuple", kind.__name__, len(thing))
            self._all(thing)
        elif isinstance(thing, set | frozenset):
            self._say("set", *sorted(map(self._apart, thing)))
        elif id(thing) in self._seen:
            self._say("again", self._seen[id(thing)][0])
        else:
            self._seen[id(thing)] = len(self._seen), thing
            self._new(thing)

    def _new(self, thing: Any) -> None:
        if isinstance(thing, Tensor):
            self._tensor(thing)
        elif isinstance(thing, torch.Generator):
            self._say("generator", thing.get_state().numpy().tobytes())
        elif isinstance(thing, np.ndarray) and thing.dtype != object:
            self._say("array", thing.dtype.str, thing.shape, np.ascontiguousarray(thing).tobytes())
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.ModuleType):
            self._say("module", thing.__name__)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, enum.Enum):
            self._say("enum", type(thing).__qualname__, thing.name)
        elif isinstance(thing, _OPAQUE):
            self._say("opaque", type(thing).__name__)
        elif isinstance(thing, _BUILTIN):
            self._say("builtin", getattr(thing, "__module__", None), getattr(thing, "__qualname__", ""))
            owner = getattr(thing, "__self__", None)
            self.add(None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(thing, types.MethodType):
            self._all((thing.__func__, thing.__self__))
        elif isinstance(thing, functools.partial):
            self._all(("partial", thing.func, thing.args, thing.keywords))
        elif isinstance(thing, staticmethod | classmethod):
            self._all((type(thing).__name__, thing.__func__))
        elif isinstance(thing, property):
            self._all(("property", thing.fget, thing.fset, thing.fdel))
        else:
            self._instance(thing)

    def _instance(self, thing: Any) -> None:
        """An object: its class, what it holds as a container, and its attributes."""
        kind = type(thing)
        self.add(kind)
        if isinstance(thing, dict | types.MappingProxyType):
            self._say(len(thing))
            self._all(part for item in list(thing.items()) for part in item)
        elif isinstance(thing, list):
            self._say(len(thing))
            self._all(list(thing))
        if kind in _CONTAINERS:
            return
        attributes = _attributes(thing)
        if isinstance(thing, nn.Module):
            attributes = self._of_module(thing, attributes)
        for name, value in attributes.items():
            self._say(name)
            self.add(value)
        if not isinstance(thing, nn.Module):
            self._reduced(thing, kind, known=bool(attributes))

    def _reduced(self, thing: Any, kind: type, known: bool) -> None:
        """What an object would be copied from: of one that code in C has made, the only way to see into it."""
        usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPIED)
        try:
            pieces = copyreg.dispatch_table.get(kind, lambda each: each.__reduce_ex__(2))(thing)
        except Exception:  # Python's usual way fails where there is more than attributes
            if (usual or not known) and _origin_of(kind) != "standard":
                raise Opaque(f"a {kind.__module__}.{kind.__qualname__}") from None
            return
        if usual and (known or kind.__flags__ & _HEAP):
            return
        if isinstance(pieces, str):
            self._say(pieces)
        else:
            items: Any = pieces[3:]
            self._all((*pieces[:3], *(list(each or ()) for each in items)))

    def _of_module(self, module: nn.Module, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes of a torch module that are settings, its hooks without the numbers under which they are listed."""
        kept: dict[str, Any] = {}
        for name, value in attributes.items():
            if name in _OF_EVERY_MODULE:
                if value and isinstance(value, dict):
                    kept[name] = list(value.values())
            elif id(module) not in self._held or not (isinstance(value, Tensor) or name in ("_parameters", "_buffers")):
                kept[name] = value
        if isinstance(module, torch.jit.ScriptModule):
            return {"code": module.code, **dict(module.named_parameters()), **dict(module.named_buffers())}
        return kept

    def _tensor(self, tensor: Tensor) -> None:
        if self._quick and not tensor.is_inference():
            self._say("tensor", id(tensor), tensor._version)
        elif not is_dense(tensor):
            raise Opaque(f"a tensor that is not dense ({tensor.layout}, {tensor.dtype})")
        else:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            content = values.tobytes() if self._quick else values.data  # what is looked at later must not change with it
            self._say("tensor", str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad, content)

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        origin = _origin(code.co_filename)
        self._say("function", function.__qualname__, origin)
        if origin in ("installed", "own"):
            self._code(code)
        self._all((function.__defaults__, function.__kwdefaults__, _attributes(function)))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if not name.startswith(("_type_", "__dataclass_type_")):  # the annotations of a dataclass
                self._say(name)
                self._cell(cell)
        if origin == "own":
            for name in _globals_of(code):
                if name in function.__globals__:
                    self._say(name)
                    self._named(function.__globals__[name], code)

    def _cell(self, cell: types.CellType) -> None:
        try:
            self.add(cell.cell_contents)
        except ValueError:
            self._say("empty")

    def _named(self, value: Any, code: types.CodeType) -> None:
        """What a function names: of a module that is one's own, what it takes from there."""
        self.add(value)
        if isinstance(value, types.ModuleType) and _origin(getattr(value, "__file__", None) or "<built in>") == "own":
            for name in sorted(_names_of(code) & vars(value).keys()):
                self._say(name)
                self.add(vars(value)[name])

    def _code(self, code: types.CodeType) -> None:
        self._say(code.co_code, code.co_exceptiontable, code.co_flags)
        self._say(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._all((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_consts))

    def _class(self, kind: type) -> None:
        origin = _origin_of(kind)
        self._say("class", kind.__qualname__, kind.__module__ if origin in ("known", "standard") else "")
        for base in kind.__mro__[1:]:
            if _origin_of(base) in ("installed", "own"):
                self.add(base)
        if origin in ("installed", "own"):
            for name, value in list(vars(kind).items()):
                if name not in _BESIDE and (origin == "own" or isinstance(value, (types.FunctionType, *_PLAIN))):
                    self._say(name)
                    self.add(value)

    def _apart(self, thing: Any) -> str:
        digest = Digest()
        digest._seen, digest._quick, digest._held = dict(self._seen), self._quick, self._held
        digest.add(thing)
        return digest.hexdigest()

    def _all(self, things: Iterable[Any]) -> None:
        for thing in things:
            self.add(thing)

    def _say(self, *words: Any) -> None:
        self._words += words


def _attributes(thing: Any) -> dict[str, Any]:
    """The attributes of an object, without those that are derived from the others when they are first asked for.

    And without those that torch's compiler adds, which hold addresses.
    """
    derived = _derived(type(thing))
    return {
        name: value for name, value in settings(thing).items() if name not in derived and not name.startswith("_torchdynamo")
    }


@functools.cache
def _derived(kind: type) -> frozenset[str]:
    lazy = (functools.cached_property, lazy_property)
    return frozenset(name for each in kind.__mro__ for name, value in vars(each).items() if isinstance(value, lazy))


@functools.cache
def _origin(path: str) -> str:
    """Whose a file of code is: "known" (torch, this library), "standard" (Python), "installed", or one's "own"."""
    if path.startswith(_KNOWN):
        return "known"
    if {"site-packages", "dist-packages"} & {*Path(path).parts}:
        return "installed"
    return "standard" if path.startswith((*_STANDARD, "<frozen ", "<built in>")) else "own"


def _origin_of(kind: type) -> str:
    if kind.__module__ == "builtins":
        return "own" if kind.__flags__ & _HEAP else "standard"
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None and str(kind.__module__).partition(".")[0] in sys.stdlib_module_names:
        return "standard"
    return _origin(file or "<string>")


@functools.cache
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function looks up outside itself, as do those that are written inside it."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return tuple(sorted(own.union(*(_globals_of(each) for each in code.co_consts if isinstance(each, types.CodeType)))))


def _names_of(code: types.CodeType) -> set[str]:
    """All names that a function mentions, those of attributes too."""
    return {*code.co_names}.union(*(_names_of(each) for each in code.co_consts if isinstance(each, types.CodeType)))
