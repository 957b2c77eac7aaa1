"""Check built pages: each is there, loads nothing remote, shows no error, and its pictures and links are in order."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Pages that the tools add to those of _toc.yml; the index at the top only forwards to the front page.
ADDED = ("index", "genindex", "search")
REMOTE = re.compile(r"^\s*(?:(?:https?|ftp|wss?):)?//", re.IGNORECASE)
# Attributes that make a browser load something. <a href> is not among them: readers follow links by choice.
LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "link": ("href",),
}
PASSIVE_RELATIONS = {"canonical", "next", "prev", "search", "index", "author", "license"}
REMOTE_IN_STYLE = re.compile(r"(?:url\(\s*|@import\s+)[\"']?\s*(?:https?:)?//[^)\"'\s;]*", re.IGNORECASE)
REMOTE_IN_SCRIPT = re.compile(r"[\"'`](?:https?:)?//[^\"'`\s]+", re.IGNORECASE)
PICTURE_PATH = re.compile(r"\.(png|svg|jpe?g|gif|webp)\s*$", re.IGNORECASE)
ERROR_MARKS = ("Traceback (most recent call last)", "---------------------------------------------------------------")
# What the pages use of MathJax: the program, the fonts, and the parts that it fetches when a formula or a reader asks.
MATHJAX_USED = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions", "a11y", "sre", "ui")


@dataclass
class Page:
    """What one HTML file contains that can be checked."""

    path: Path
    text: str
    loads: list[tuple[str, str]] = field(default_factory=list)  # (tag, address)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    images: list[tuple[str, str | None]] = field(default_factory=list)  # (source, alternative text)
    scripts: str = ""
    styles: str = ""
    has_error_output: bool = False

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong with this page by itself."""
        remote = [f"<{tag}> loads {address}" for tag, address in self.loads if REMOTE.match(address)]
        remote += [f"a style loads {found}" for found in REMOTE_IN_STYLE.findall(self.styles)]
        remote += [f"a script names {found}" for found in REMOTE_IN_SCRIPT.findall(self.scripts)]
        errors = ["a traceback"] if self.has_error_output or any(mark in self.text for mark in ERROR_MARKS) else []
        return remote + errors + [f"image {source}: {fault}" for source, alt in self.images if (fault := alt_fault(alt))]


class _Reader(HTMLParser):
    """Fills a `Page` from its HTML."""

    def __init__(self, page: Page):
        super().__init__(convert_charrefs=True)
        self.page, self.inside = page, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        page, given = self.page, dict(attrs)
        page.anchors.update(value for name in ("id", "name") if (value := given.get(name)))
        relations = set((given.get("rel") or "").split())
        if tag != "link" or not relations & PASSIVE_RELATIONS:
            for name in LOADS.get(tag, ()):
                parts = (given.get(name) or "").split(",") if name == "srcset" else [given.get(name) or ""]
                page.loads += [(tag, part.split()[0]) for part in parts if part.split()]
        if tag == "a" and given.get("href"):
            page.links.append(given["href"] or "")
        if tag == "img":
            page.images.append((given.get("src") or "", given.get("alt")))
        page.styles += f" {given.get('style') or ''}"
        classes = set((given.get("class") or "").split())
        page.has_error_output |= {"output", "traceback"} <= classes or {"output", "stderr"} <= classes
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.page.scripts += data
        elif self.inside == "style":
            self.page.styles += data


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(path, text)
    reader = _Reader(page)
    reader.feed(text)
    reader.close()
    return page


def alt_fault(alt: str | None) -> str:
    """What is wrong with an alternative text; nothing if it can stand for the picture."""
    if alt is None or not alt.strip():
        return "no alternative text"
    if PICTURE_PATH.search(alt) or "_images/" in alt:
        return f"the alternative text is a file's path: {alt}"
    return ""


def check(html: Path, listed: Iterable[str]) -> list[str]:
    """Everything that is wrong with the pages under `html`, which should be those `listed`, one line for each fault."""
    read_pages = [read(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]
    found = {page.path: page for page in read_pages}
    names = {path.relative_to(html).with_suffix("").as_posix() for path in found}
    problems = [f"{name}: listed, but not built" for name in sorted(set(listed) - names)]
    problems += [f"{name}: built, but not listed" for name in sorted(names - set(listed) - set(ADDED))]
    for page in found.values():
        name = page.path.relative_to(html).as_posix()
        problems += [f"{name}: {problem}" for problem in page.problems + broken_links(page, html, found)]
    return problems + remote_styles(html)


def broken_links(page: Page, html: Path, found: dict[Path, Page]) -> list[str]:
    """The addresses inside the book, followed or loaded, that lead nowhere."""
    problems = []
    for address in {*page.links, *(address for _, address in page.loads)}:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        if parts.path.startswith("/"):
            problems.append(f"{address} starts at the root of the disk")
            continue
        target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
        if not target.is_relative_to(html.resolve()) or not target.is_file():
            problems.append(f"{address} does not exist")
        elif parts.fragment and target in found and unquote(parts.fragment) not in found[target].anchors:
            problems.append(f"{address} has no such anchor")
    return sorted(problems)


def remote_styles(html: Path) -> list[str]:
    """The style sheets that load something from another host."""
    problems = []
    for file in sorted(html.rglob("*.css")):
        for address in REMOTE_IN_STYLE.findall(file.read_text(encoding="utf-8", errors="replace")):
            problems.append(f"{file.relative_to(html).as_posix()}: a style loads {address}")
    return problems


def strip_unused(html: Path) -> None:
    """Remove what the pages never use of the mathematics program, most of its 24 MB."""
    top = html / "_static" / "mathjax"
    for file in [file for file in top.rglob("*") if file.is_file()]:
        inside = file.relative_to(top).as_posix()
        if not any(inside == used or inside.startswith(f"{used}/") for used in MATHJAX_USED):
            file.unlink()
    for folder in sorted((folder for folder in top.rglob("*") if folder.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
