"""Mend what the tools write and a screen reader stumbles over: changes of markup, none of what is seen."""

import re
from pathlib import Path

_NO_HEAD = re.compile(r'<th class="head[^"]*">\s*(?:<p>\s*</p>)?\s*</th>')  # of the column of the rows' names
_SIGNATURE = re.compile(r'<dt class="sig.*?</dt>', re.DOTALL)
# What to put in the place of what, in every page.
CHANGES = (
    # The arrows beside entries of the sidebar that open have no name.
    ('<summary><span class="toctree-toggle"', '<summary aria-label="Pages inside"><span class="toctree-toggle"'),
    # Of the sidebar only the menu is inside a landmark.
    ('<div id="pst-primary-sidebar"', '<div id="pst-primary-sidebar" role="complementary" aria-label="The book"'),
    # Entries of a list that is none, with a role that is no longer one.
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),
    (' role="doc-biblioentry"', ""),
    # Tables of the text scroll on a phone, which those who use keys must be able to do.
    ('<table class="table">', '<table class="table" tabindex="0">'),
)


def mend(html: Path) -> None:
    """Mend the pages under `html`."""
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for old, new in CHANGES:
            text = text.replace(old, new)
        text = _NO_HEAD.sub("<td></td>", _SIGNATURE.sub(_listed, text))
        path.write_text(text, encoding="utf-8")


def _listed(signature: re.Match[str]) -> str:
    """A signature whose arguments are a list, and not definitions without terms."""
    return re.sub(r"<(/?)dl>", r"<\1ul>", re.sub(r"<(/?)dd>", r"<\1li>", signature[0]))
