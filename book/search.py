"""A search that finds sections and their words in pages that are opened as files.

Sphinx's own search fetches the pages that it found, to show and rank their sections, and a browser lets no page that was opened
as a file fetch another one. So the text of every section goes into one script, which the page of results loads.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from bs4 import BeautifulSoup, Tag

TEXTS = "_static/sections.js"
# What Sphinx's page of results loads for its own search.
THEIRS = re.compile(r'\s*<script src="(?:_static/searchtools\.js|_static/language_data\.js|searchindex\.js)[^>]*></script>')
LEFT_OUT = "script, style, svg, .headerlink, .cell_input, .hide > summary, .section-number"
HEADING = re.compile("^h[1-6]$")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SIGNS = {"to": "→", "ge": "≥", "le": "≤", "approx": "≈", "times": "×", "sum": "∑", "infty": "∞", "partial": "∂", "log": "log "}


def add(html: Path, listed: Iterable[str]) -> None:
    """Put the search into the pages under `html`, of which those `listed` are searched, if they have a page of results."""
    page = html / "search.html"
    if not page.is_file():
        return
    found = [part for page in listed for part in sections(html, page)]
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (html / TEXTS).write_text(f"window.nbvaeSections={text};\n", encoding="utf-8")
    text, count = THEIRS.subn("", page.read_text(encoding="utf-8"))
    if count != 3:
        raise ValueError(f"search.html loads {count} scripts of Sphinx's search in place of 3: see book/search.py")
    ours = f'<script defer src="{TEXTS}"></script>\n<script defer src="_static/search.js"></script>\n</head>'
    page.write_text(text.replace("</head>", ours, 1), encoding="utf-8")


def sections(html: Path, page: str) -> list[dict[str, str]]:
    """The sections and the defined terms and names of a page.

    Each has `title`, `page`, the title of the page, `url`, and `text`, without that of what is inside and has its own.
    """
    soup = BeautifulSoup((html / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
    article = soup.find("article") or soup
    for formula in article.select(".math"):
        formula.string = plain(formula.get_text())
    for part in article.select(LEFT_OUT):
        part.extract()
    found = []
    for part in reversed(article.select("section[id], dt[id]")):  # what is inside comes first, and is then gone
        heading = part.find(HEADING, recursive=False) if part.name == "section" else part
        body = part if part.name == "section" else part.find_next_sibling("dd")
        if not isinstance(heading, Tag) or not isinstance(body, Tag):
            continue
        title = _words(heading.extract())
        found.append({"title": title, "url": f"{page}.html#{part['id']}", "text": _words(body.extract())})
    name = found[-1]["title"] if found else page
    return [{"page": name, **each} for each in reversed(found)]


def _words(part: Tag) -> str:
    return " ".join(part.get_text(" ").split())


def plain(formula: str) -> str:
    r"""A formula as a reader would type it: Greek letters for their names, without what only sets it.

    >>> plain(r"\(\beta\sigma^2 \ge \tfrac12\log \mathrm{KL}\)")
    'βσ^2 ≥ 12log KL'
    """

    def sign(found: re.Match[str]) -> str:
        name = found[1]
        if name in _SIGNS:
            return _SIGNS[name]
        greek = name.removeprefix("var")
        case = "CAPITAL" if greek[:1].isupper() else "SMALL"
        spelt = {"lambda": "LAMDA"}.get(greek.lower(), greek.upper())
        try:
            return unicodedata.lookup(f"GREEK {case} LETTER {spelt}")
        except KeyError:
            return ""

    text = _COMMAND.sub(sign, formula)
    return " ".join(re.sub(r"\\[()\[\]]|\\[,;:!|]|\\\\|[&{}$]", "", text).split())
