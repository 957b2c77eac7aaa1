"""The public names of the library: what their docstrings and sources say, and what they leave out."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstrings

LONGEST = 200  # characters of a value that is shown


@dataclass(frozen=True)
class Entry:
    """A public name: what it stands for, and its room, by which readers call it."""

    room: str  # as it is imported: nbvae.estimators
    name: str
    value: Any

    @property
    def path(self) -> str:
        return f"{self.room}.{self.name}"

    @property
    def short(self) -> str:
        """As the text of a chapter has it: estimators.iwae."""
        return self.path.removeprefix("nbvae.")

    @property
    def kind(self) -> str:
        if inspect.isclass(self.value):
            return "exception" if issubclass(self.value, BaseException) else "class"
        if isinstance(self.value, types.ModuleType):
            return "module"
        return "function" if inspect.isfunction(self.value) else "data"

    @property
    def text(self) -> str:
        """What is said of it: its docstring, or the comment at its assignment."""
        if self.kind == "data":
            return assigned(self.room, self.name)[1]
        return inspect.getdoc(self.value) or ""

    @property
    def summary(self) -> str:
        """The first sentence, or paragraph, of what is said of it."""
        return " ".join(self.text.split("\n\n")[0].split())


def rooms() -> list[str]:
    """The modules that have a page, in the order of the library's own list and then the studies."""
    import nbvae

    return [*(f"nbvae.{room}" for room in nbvae.__all__), "studies"]


def entries(room: str) -> list[Entry]:
    """The public names of a room: those of `__all__`, or those that it defines without an underscore."""
    module = importlib.import_module(room)
    names = getattr(module, "__all__", None)
    if names is None:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names = [name for name in own if not name.startswith("_")]
    return [Entry(room, name, getattr(module, name)) for name in names]


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines, as functions."""
    for name, value in vars(owner).items():
        function = getattr(value, "__func__", value.fget if isinstance(value, property) else value)
        if not name.startswith("_") and inspect.isfunction(function) and name != "extra_repr":
            yield name, function


# What is missing ---------------------------------------------------------------------------------------------------


def faults(names: list[Entry]) -> list[str]:
    """What the reference of these names would leave out, a line for each."""
    shown = [*map(returned, filter(None, map(shows, names)))]
    found: list[str] = []
    for entry in names:
        if not entry.text.strip():
            found.append(f"{entry.short} has no {'comment at its assignment' if entry.kind == 'data' else 'docstring'}")
            continue
        if entry.kind in ("function", "class", "exception"):
            found += _silent(entry.short, entry.value, entry.text)
            if ">>> " not in entry.text and not any(entry.name in each for each in shown):
                found.append(f"{entry.short} has no example, and no example of another name returns one")
        if entry.kind == "class":
            for name, function in members(entry.value):
                text = inspect.getdoc(getattr(entry.value, name)) or ""
                if text:
                    found += _silent(f"{entry.short}.{name}", function, f"{text}\n{entry.text}")
                else:
                    found.append(f"{entry.short}.{name} has no docstring")
    return found


def _silent(name: str, value: Any, text: str) -> list[str]:
    """The arguments that a docstring does not name: in code font, or, of one letter as in formulas, as they are."""
    code = set(re.findall(r"\w+", " ".join(docstrings.CODE.findall(text))))
    letters = set(re.findall(r"\b\w\b", text))
    noted = {name for name, comment in comments(value).items() if comment} if inspect.isclass(value) else set()
    said = code | letters | noted
    missing = [each for each in arguments(value) if each not in said and each.removesuffix("_stderr") not in said]
    return [f"{name} does not say what its argument {each} is" for each in missing]


def arguments(value: Any) -> list[str]:
    """The names of the arguments that a caller gives."""
    try:
        given = list(inspect.signature(value).parameters.values())
    except (ValueError, TypeError):  # an exception's own, for example
        return []
    if getattr(value, "_is_protocol", False):  # nobody makes one
        return []
    return [each.name for each in given if each.name not in ("self", "cls")]


def shows(entry: Entry) -> Any:
    """The value of an entry that has an example, or nothing."""
    return entry.value if ">>> " in entry.text else None


@functools.cache
def returned(value: Any) -> frozenset[str]:
    """The names in what a function, or the methods of a class, say that they return."""
    functions = [value, *(function for _, function in members(value))] if inspect.isclass(value) else [value]
    return frozenset(
        name
        for function in functions
        if inspect.isfunction(function) and (node := tree(function)) is not None
        for name in re.findall(r"\w+", ast.unparse(getattr(node, "returns", None) or ast.Constant(None)))
    )


# What the sources say ----------------------------------------------------------------------------------------------


@functools.cache
def tree(value: Any) -> Any:
    """The syntax tree of a function or class; None where there is no source."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None


def lineage(owner: type) -> list[type]:
    """A class and its bases of the same package, the last base first."""
    package = owner.__module__.partition(".")[0]
    return [each for each in reversed(owner.__mro__) if each.__module__.partition(".")[0] == package]


@functools.cache
def comments(owner: type) -> Mapping[str, str]:
    """The comments at the end of the lines of a class's fields, those of its bases too."""
    found: dict[str, str] = {}
    for each in lineage(owner):
        if (node := tree(each)) is None:
            continue
        lines = textwrap.dedent(inspect.getsource(each)).splitlines()
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = lines[(field.end_lineno or 1) - 1][field.end_col_offset or 0 :].lstrip(" #").strip()
    return found


@functools.cache
def assigned(room: str, name: str) -> tuple[str, str]:
    """A constant of a room: its value as the source has it, and the comment above or behind it."""
    package = room.partition(".")[0]
    top = Path(str(importlib.import_module(package).__file__)).parent
    inside = top.joinpath(*room.split(".")[1:])
    files = [*sorted(inside.rglob("*.py")), *([inside.with_suffix(".py")] if inside.with_suffix(".py").is_file() else [])]
    for file in [*files, *sorted(top.glob("*.py"))]:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if not isinstance(target, ast.Name) or target.id != name or node.end_lineno is None:
                continue
            behind = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.startswith("#"):
                    break
                above.insert(0, line.lstrip("# "))
            return ast.unparse(getattr(node, "value", ast.Constant(None))), behind.lstrip("# ") or " ".join(above)
    return "", ""


def signature(value: Any) -> tuple[str, str]:
    """Arguments, and what is returned, in the words of the source: `x: Float[Tensor, "batch n"]`, and no module paths."""
    written = _written(value)
    try:
        found = inspect.signature(value)
    except (ValueError, TypeError):
        return "()", ""
    parts, star = [], False
    for each in found.parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        annotation, default = written.get(each.name, ("", ""))
        sign = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        text = f"{sign}{each.name}{f': {annotation}' if annotation else ''}"
        if each.default is not each.empty:
            text += f" = {default or '...'}" if annotation else f"={default or '...'}"
        parts.append(text)
    node = tree(value)
    result = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
    return f"({', '.join(parts)})", "" if result in ("None", "") else plain(result)


def _written(value: Any) -> dict[str, tuple[str, str]]:
    """Annotation and default of each argument, as they are written."""
    if inspect.isclass(value):
        if not (dataclasses.is_dataclass(value) or hasattr(value, "_fields")):
            return _written(value.__init__) if inspect.isfunction(value.__init__) else {}
        fields = [field for each in lineage(value) if (node := tree(each)) for field in node.body]
        return {
            field.target.id: (plain(ast.unparse(field.annotation)), _default(field.value))
            for field in fields
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
    node = tree(value)
    if not isinstance(node, ast.FunctionDef):
        return {}
    given = node.args
    several = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(several) - len(given.defaults)) + given.defaults
    pairs = [*zip(several, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    pairs += [(each, None) for each in (given.vararg, given.kwarg) if each]
    return {arg.arg: (plain(ast.unparse(arg.annotation)) if arg.annotation else "", _default(value)) for arg, value in pairs}


def plain(annotation: str) -> str:
    """An annotation without the quotes and spaces that are there for Python: `Float[Tensor, 'k']`."""
    annotation = re.sub(r"(['\"]) +", r"\1", annotation)
    return annotation[1:-1] if re.fullmatch(r"'[\w.]+'", annotation) else annotation


def _default(node: ast.expr | None) -> str:
    """A default as it is written; a field that is made by a function has dots."""
    text = ast.unparse(node) if node is not None else ""
    return "..." if text.startswith("field(") else text
