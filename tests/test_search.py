"""The search of the pages: what is searched, and what a browser finds in pages that were opened as files."""

import re
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest
from test_book import CHROMIUM, needs_browser

ROOT = Path(__file__).resolve().parent.parent
search = pytest.importorskip("search")

PAGE = r"""<html><body><article><section id="top">
<h1><span class="section-number">3. </span>The curve<a class="headerlink">#</a></h1>
<p>Where <span class="math">\(\beta\sigma^2\)</span> is the level.</p><div class="cell_input">model = train()</div>
<section id="inside"><h2>Water–filling</h2><p>Directions above water, by Fréchet’s distance.</p></section>
<p>After it.</p><dl><dt id="term-level">level</dt><dd><p>A height of water.</p></dd></dl></section></article>
<nav><section id="menu"><h2>Menu</h2></section></nav></body></html>"""
RESULTS = """<html><head><meta charset=utf-8><script src="_static/searchtools.js?v=1"></script>
<script src="_static/language_data.js"></script><script src="searchindex.js"></script></head>
<body><form class="bd-search"><input name="q"></form><div id="search-results"></div></body></html>"""


@pytest.fixture
def book(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "curve.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "search.html").write_text(RESULTS, encoding="utf-8")
    (tmp_path / "_static" / "search.js").write_bytes((ROOT / "book" / "_static" / "search.js").read_bytes())
    search.add(tmp_path, ["curve"])
    return tmp_path


def test_each_section_and_term_has_its_own_words_once(book):
    assert search.sections(book, "curve") == [
        {"page": "The curve", "title": "The curve", "url": "curve.html#top", "text": "Where βσ^2 is the level. After it."},
        {
            "page": "The curve",
            "title": "Water–filling",
            "url": "curve.html#inside",
            "text": "Directions above water, by Fréchet’s distance.",
        },
        {"page": "The curve", "title": "level", "url": "curve.html#term-level", "text": "A height of water."},
    ]


def test_formulas_are_read_as_one_would_type_them():
    assert search.plain(r"\(\lambda_i > \beta\sigma^2\)") == "λ_i > βσ^2"
    assert search.plain(r"\(\Lambda, \varepsilon, \mathrm{KL}(q\,\|\,p) \ge 0\)") == "Λ, ε, KL(qp) ≥ 0"


def test_the_page_of_results_loads_ours_and_not_the_search_that_needs_a_server(book):
    text = (book / "search.html").read_text()
    assert re.findall(r'<script[^>]* src="([^"]+)"', text) == ["_static/sections.js", "_static/search.js"]
    with pytest.raises(ValueError, match="loads 0 scripts"):
        search.add(book, ["curve"])


def found(folder: Path, query: str) -> tuple[str, list[str], list[str]]:
    """What the page of results says, its links, and what it marks."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=4000"]
    command += [
        f"--user-data-dir={folder.parent / 'profile'}",
        "--dump-dom",
        f"{(folder / 'search.html').as_uri()}?q={quote(query)}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    results = dom[dom.index('id="search-results"') :]
    said = re.search(r'role="status">([^<]*)<', results)
    links = re.findall(r'<li><a href="([^"]+)"', results)
    return unescape(said[1]) if said else "", links, re.findall(r"<mark>([^<]*)</mark>", results)


@needs_browser
@pytest.mark.parametrize(
    ("query", "links"),
    [
        ("water-filling", ["curve.html#inside"]),  # the title has another dash
        ("frechet's DISTANCE", ["curve.html#inside"]),
        ("βσ", ["curve.html#top"]),
        ("level", ["curve.html#term-level", "curve.html#top"]),
        ("water above", ["curve.html#inside"]),  # words in any order
        ("<b>", []),
        ("", []),
    ],
)
def test_a_browser_finds_the_section_in_pages_that_are_files(book, query, links):
    said, there, marked = found(book, query)
    assert there == links
    assert bool(marked) == bool(links)
    assert said.startswith(f"{len(links)} section" if links else "Nothing has “<b>”" if query else "")


@needs_browser
@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("water-filling", "03_rate_distortion.html#"),
        ("Fréchet", "04_sigma_and_beta.html#which-gives-the-best-pictures"),
        ("A density may be as high as it likes", "04_sigma_and_beta.html#a-density-is-not-a-code-length"),
    ],
)
def test_the_built_book_is_found_by_titles_and_by_words_of_its_text(html, query, page):
    _, links, _ = found(html, query)
    assert any(page in link for link in links), links
