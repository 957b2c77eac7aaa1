"""The reference: a page for each room, made of docstrings while the pages are rendered, and links to it from all others.

A page of the reference holds the directive `.. room:: nbvae.estimators`, by which Sphinx's autodoc shows each public name with
its signature as the source has it. Names in code font, such as `estimators.iwae`, lead there from every page of the book, and
each entry names the chapters that use it. A name without a docstring, an argument that its docstring does not name, and a
function or class without an example end the build.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.nodes import make_refnode, nested_parse_with_titles

import docstrings

FOLDER = "book/reference"
LONGEST = 200  # characters of a value that is shown


class Incomplete(SphinxError):
    """The reference has names that are not explained."""

    category = "The reference is not complete"


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


# Who uses what -----------------------------------------------------------------------------------------------------


def chapters(root: Path) -> list[str]:
    """The names of the notebooks, in the order of `_toc.yml`."""
    text = (root / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"file: *book/executed/(\d\w*)", json.dumps(yaml.safe_load(text)).replace('"', ""))
    return [name for name in listed if (root / "notebooks" / f"{name}.ipynb").is_file()]


def used(root: Path) -> dict[str, list[str]]:
    """For each `room.Name` in the code or text of the chapters, the chapters in their order."""
    found: dict[str, list[str]] = {}
    for chapter in chapters(root):
        cells = json.loads((root / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        for name in sorted(set(re.findall(r"(?<![\w.])((?:nbvae\.|training\.)?[a-z_]+\.[A-Za-z_]\w*)", text))):
            found.setdefault(name.removeprefix("nbvae."), []).append(chapter)
    return found


def number(chapter: str) -> str:
    return str(int(chapter.partition("_")[0]))


def used_in(entry: Entry, uses: Mapping[str, list[str]]) -> str:
    """ "Used in chapter 3, 5", each a link; nothing if no chapter does."""
    found = uses.get(entry.short, [])
    links = ", ".join(f":doc:`{number(chapter)} </book/executed/{chapter}>`" for chapter in found)
    return f"Used in chapter{'s' if len(found) > 1 else ''} {links}." if found else ""


# The pages ---------------------------------------------------------------------------------------------------------


class Room(Directive):
    """The public names of a module: `.. room:: nbvae.estimators`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        room, app = self.arguments[0], self.state.document.settings.env.app
        node = nodes.section()
        node.document = self.state.document
        lines = StringList(page(room, app.reference_uses), source=f"{room} (docstrings)")
        nested_parse_with_titles(self.state, lines, node)
        return node.children


def page(room: str, uses: Mapping[str, list[str]]) -> list[str]:
    """A room in reStructuredText: what it says of itself, its names with a sentence each, and an entry for each."""
    names = entries(room)
    lines = [f".. py:module:: {room}", "", *docstrings.rest(inspect.getdoc(importlib.import_module(room)) or ""), ""]
    lines += [".. list-table::", "   :class: names", "   :widths: 38 62", ""]
    for entry in names:
        lines += [f"   * - :py:obj:`{entry.name} <{entry.path}>`", f"     - {docstrings.inline(entry.summary)}"]
    for entry in names:
        lines += ["", *_entry(entry, uses)]
    return [*lines, *(_studies() if room == "studies" else []), ""]


def _studies() -> list[str]:
    """What each study asks, and the chapter that shows it."""
    import studies

    lines = ["", ".. rubric:: The studies", "", ".. list-table::", "   :class: names", "   :widths: 32 68", ""]
    for name in studies.NAMES:
        study = studies.study(name)
        shown = f":doc:`Chapter {number(study.CHAPTER)} </book/executed/{study.CHAPTER}>`." if study.CHAPTER else ""
        lines += [f"   * - ``{name}``", f"     - {docstrings.inline(study.QUESTION)} {shown}"]
    return [*lines, ""]


def _entry(entry: Entry, uses: Mapping[str, list[str]]) -> list[str]:
    if entry.kind == "module":
        lines = [f".. py:module:: {entry.path}", "", f".. rubric:: {entry.short}", "", *docstrings.rest(entry.text)]
        lines += [used_in(entry, uses), ""]
        for each in entries(entry.path):
            lines += [f".. autofunction:: {each.path}", ""] if each.kind == "function" else []
        return lines
    if (home := elsewhere(entry)) is not None:
        lines = [
            f".. py:data:: {entry.name}",
            f"   :module: {entry.room}",
            "",
            f"   {docstrings.inline(f'The same as `{home.short}`.')}",
            "",
        ]
        return [*lines, f"   {used_in(entry, uses)}", ""]
    if entry.kind == "data":
        value = assigned(entry.room, entry.name)[0]
        lines = [f".. py:data:: {entry.name}", f"   :module: {entry.room}", ""]
        lines += [f"   {line}" for line in docstrings.rest(entry.text)]
        lines += [f"   {docstrings.inline(f'`{value}`')}", ""] if 0 < len(value) <= LONGEST else []
        return [*lines, f"   {used_in(entry, uses)}", ""]
    members_too = ["   :members:"] if entry.kind == "class" else []
    return [f".. auto{entry.kind}:: {entry.path}", *members_too, ""]


def elsewhere(entry: Entry) -> Entry | None:
    """The entry of the room in which a class or function is defined, if another room offers it too."""
    if entry.kind not in ("class", "function"):
        return None
    own = ".".join(entry.value.__module__.split(".")[:2])
    if own == entry.room or own not in rooms() or all(each.value is not entry.value for each in entries(own)):
        return None
    return Entry(own, entry.name, entry.value)


def write_signature(app: Sphinx, what: str, name: str, value: Any, *rest: Any) -> tuple[str | None, str | None] | None:
    if what in ("function", "method", "class", "exception"):
        given, result = signature(value)
        protocol = getattr(value, "_is_protocol", False)
        return (None, None) if protocol or (inspect.isclass(value) and given == "()") else (given, result or None)
    return None


def write_docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as they are written here become what Sphinx reads; fields' comments become a list of fields."""
    text = "\n".join(lines)
    result = docstrings.rest(text)
    entry = app.reference_entries.get(name)
    if entry and entry.kind == "class":
        mentioned = set(re.findall(r"\w+", " ".join(re.findall(r"^- (`[^:]*):", text, re.MULTILINE))))
        fields = [each for each in arguments(value) if each not in mentioned and comments(value).get(each)]
        listed = [f"- `{each}`: {comments(value)[each]}" for each in fields]
        at = next((n for n, line in enumerate(result) if line.startswith(">>>")), len(result))
        result[at:at] = [*docstrings.rest("\n".join(listed)), ""] if listed else []
    if entry:
        makers = [other for other in app.reference_entries.values() if _makes(other, entry)] if ">>> " not in text else []
        if makers:
            links = ", ".join(f":py:obj:`{other.short} <{other.path}>`" for other in makers)
            result += ["", f"Returned by {links}.", ""]
        result += ["", used_in(entry, app.reference_uses), ""]
    lines[:] = result


def _makes(maker: Entry, record: Entry) -> bool:
    """Whether a name with an example returns this record; of two names for one value, those of the same room count."""
    return maker.value is not record.value and bool(shows(maker)) and record.name in returned(maker.value)


def skip_member(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a record stand in its signature, and what torch asks of a module is of no use to readers."""
    return True if name == "extra_repr" or type(value).__name__ == "_tuplegetter" else None


# Links -------------------------------------------------------------------------------------------------------------

NAME = re.compile(r"(?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", re.DOTALL)


def target_of(code: str, known: Mapping[str, Any], room: str = "") -> str:
    """The full name of the entry that a piece of code in a text names; nothing if it names none, or might name several.

    On the page of a room its own names stand alone.
    """
    found = NAME.fullmatch(code)
    if not found:
        return ""
    path = found["path"]
    if room and f"{room}.{path}" in known:
        return f"{room}.{path}"
    if "." not in path and not (room and path[0].isupper()):
        return ""
    for full in (path, f"nbvae.{path}"):
        if full in known:
            return full
    ends = [full for full in known if full.endswith(f".{path}")]
    return ends[0] if len(ends) == 1 else ""


def link_names(app: Any, doctree: nodes.document, docname: str) -> None:
    """Names in code font lead to their entries."""
    domain = app.env.get_domain("py")
    known = {name: entry for name, entry in domain.objects.items() if not entry.aliased}
    room = next((room for room in app.reference_rooms if docname == page_of(room)), "")
    for literal in list(doctree.findall(nodes.literal)):
        if _inside(literal, (nodes.reference, nodes.title, nodes.term)) or isinstance(literal.parent, nodes.literal_block):
            continue
        full = target_of(literal.astext(), known, room)
        if full:
            entry = known[full]
            link = make_refnode(app.builder, docname, entry.docname, entry.node_id, [literal.deepcopy()], full)
            link["classes"].append("to-reference")
            literal.replace_self(link)


def leave_types(app: Sphinx, env: Any, node: nodes.Element, text: nodes.TextElement) -> nodes.Node | None:
    """Types of other libraries in signatures, such as Tensor, have no page here and stay text."""
    return text if node.get("refdomain") == "py" and node.get("reftype") in ("class", "exc") else None


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def page_of(room: str) -> str:
    return f"{FOLDER}/{room.rpartition('.')[2]}"


def begin(app: Any) -> None:
    """Look at every name before any page is read: what is missing ends the build at once."""
    root = Path(app.srcdir)
    app.reference_rooms = rooms()
    names = [entry for room in app.reference_rooms for entry in entries(room)]
    app.reference_entries = {entry.path: entry for entry in names}
    app.reference_uses = used(root)
    found = faults(names)
    found += [f"{room} has no page {page_of(room)}.rst" for room in app.reference_rooms if not _has_page(root, room)]
    if found:
        raise Incomplete("\n".join(f"ERROR: {each}" for each in found))


def _has_page(root: Path, room: str) -> bool:
    file = root / f"{page_of(room)}.rst"
    return file.is_file() and f".. room:: {room}\n" in file.read_text(encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("room", Room)
    app.connect("builder-inited", begin)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-docstring", write_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", leave_types)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": False, "parallel_write_safe": False}
