"""The reference: a page for each room, made of docstrings while the pages are rendered, and links to it from all others.

A page of the reference holds the directive `.. room:: nbvae.estimators`, by which Sphinx's autodoc shows each public name with
its signature as the source has it. Names in code font, such as `estimators.iwae`, lead there from every page of the book, and
each entry names the chapters that use it. What names do not say of themselves (`public.faults`) ends the build.
"""

import importlib
import inspect
import json
import re
from collections.abc import Mapping
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
import public

FOLDER = "book/reference"


class Incomplete(SphinxError):
    """The reference has names that are not explained."""

    category = "The reference is not complete"


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


def used_in(entry: public.Entry, uses: Mapping[str, list[str]]) -> str:
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
    names = public.entries(room)
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


def _entry(entry: public.Entry, uses: Mapping[str, list[str]]) -> list[str]:
    if entry.kind == "module":
        lines = [f".. py:module:: {entry.path}", "", f".. rubric:: {entry.short}", "", *docstrings.rest(entry.text)]
        lines += [used_in(entry, uses), ""]
        for each in public.entries(entry.path):
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
        value = public.assigned(entry.room, entry.name)[0]
        lines = [f".. py:data:: {entry.name}", f"   :module: {entry.room}", ""]
        lines += [f"   {line}" for line in docstrings.rest(entry.text)]
        lines += [f"   {docstrings.inline(f'`{value}`')}", ""] if 0 < len(value) <= public.LONGEST else []
        return [*lines, f"   {used_in(entry, uses)}", ""]
    members_too = ["   :members:"] if entry.kind == "class" else []
    return [f".. auto{entry.kind}:: {entry.path}", *members_too, ""]


def elsewhere(entry: public.Entry) -> public.Entry | None:
    """The entry of the room in which a class or function is defined, if another room offers it too."""
    if entry.kind not in ("class", "function"):
        return None
    own = ".".join(entry.value.__module__.split(".")[:2])
    if own == entry.room or own not in public.rooms() or all(each.value is not entry.value for each in public.entries(own)):
        return None
    return public.Entry(own, entry.name, entry.value)


def write_signature(app: Sphinx, what: str, name: str, value: Any, *rest: Any) -> tuple[str | None, str | None] | None:
    if what in ("function", "method", "class", "exception"):
        given, result = public.signature(value)
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
        fields = [each for each in public.arguments(value) if each not in mentioned and public.comments(value).get(each)]
        listed = [f"- `{each}`: {public.comments(value)[each]}" for each in fields]
        at = next((n for n, line in enumerate(result) if line.startswith(">>>")), len(result))
        result[at:at] = [*docstrings.rest("\n".join(listed)), ""] if listed else []
    if entry:
        makers = [other for other in app.reference_entries.values() if _makes(other, entry)] if ">>> " not in text else []
        if makers:
            links = ", ".join(f":py:obj:`{other.short} <{other.path}>`" for other in makers)
            result += ["", f"Returned by {links}.", ""]
        result += ["", used_in(entry, app.reference_uses), ""]
    lines[:] = result


def _makes(maker: public.Entry, record: public.Entry) -> bool:
    """Whether a name with an example returns this record; of two names for one value, those of the same room count."""
    return maker.value is not record.value and bool(public.shows(maker)) and record.name in public.returned(maker.value)


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
    app.reference_rooms = public.rooms()
    names = [entry for room in app.reference_rooms for entry in public.entries(room)]
    app.reference_entries = {entry.path: entry for entry in names}
    app.reference_uses = used(root)
    found = public.faults(names)
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
