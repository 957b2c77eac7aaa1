"""The pages, as far as they are built, and the checks that they pass."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import pages  # noqa: E402
import picture  # noqa: E402
import running  # noqa: E402
import shared  # noqa: E402

LISTED = shared.listed_pages(ROOT)
CHAPTERS = [page for page in LISTED if page.startswith("book/executed/") and Path(page).name not in running.WRITTEN]
NUMBERED = [page for page in CHAPTERS if Path(page).name[0].isdigit()]  # the others are how-to pages
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What the theme's own scripts say on every page.
CHATTER = ("[PST]", "[togglebutton]", "Got invalid theme mode")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


# The built book ---------------------------------------------------------------------------------------------------


def test_the_built_pages_pass_every_check(html):
    assert pages.check(html, LISTED) == []


def test_the_offered_notebooks_name_no_folder_of_this_machine(html):
    for chapter in CHAPTERS:
        assert str(ROOT) not in (html / "_sources" / f"{chapter}.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", NUMBERED)
def test_figures_equations_and_exercises_are_numbered_by_chapter(html, chapter):
    text = (html / f"{chapter}.html").read_text(encoding="utf-8")
    number = str(int(Path(chapter).name[:2]))
    for what in (r'caption-number">Fig\. ([\d.]+)', r'class="eqno">\(([\d.]+)', r'caption-number">Exercise ([\d.]+)'):
        found = re.findall(what, text)
        assert found, what
        assert found == [f"{number}.{k}" for k in range(1, len(found) + 1)], what
    assert f'<span class="section-number">{number}. </span>' in text


def test_the_picture_of_the_landing_page_has_the_numbers_of_the_record():
    assert picture.mark(picture.recorded()) in picture.PICTURE.read_text(encoding="utf-8"), "run python book/picture.py"


def browse(address: str, profile: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """Open a page with the network off: its final DOM, what the console said, what the page asked other hosts for."""
    log = profile / "net.json"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=20000",
        *options, "--dump-dom", address,
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = re.findall(r"CONSOLE[:(]\d+\)?\] \"(.*)", run.stderr)
    text = log.read_text(encoding="utf-8")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # the browser may be gone before it closes the list
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    # The browser calls home by itself; requests that a page starts carry an initiator.
    started = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = [start["url"] for start in started if start["initiator"] != "not an origin"]
    asked = [url for url in asked if url.startswith(("http", "ws"))]
    return run.stdout, [line for line in console if not line.startswith(CHATTER)], asked


@needs_browser
@pytest.mark.parametrize("page", LISTED)
def test_a_browser_without_network_shows_the_page(html, tmp_path, page):
    dom, console, asked = browse((html / f"{page}.html").as_uri(), tmp_path)
    assert console == []
    assert asked == []
    assert dom.rstrip().endswith("</html>")
    assert dom.count('class="live"') == dom.count("data-live="), "a live element did not start"
    if page in CHAPTERS:
        assert "<mjx-container" in dom
        assert "<mjx-merror" not in dom


@needs_browser
def test_the_browser_notices_errors_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<html><img src="https://example.com/a.png"><script>console.error("boo"); '
        'setTimeout(() => { throw new Error("late") }, 10)</script></html>'
    )
    dom, console, asked = browse(page.as_uri(), tmp_path / "profile")
    assert "<mjx-container" not in dom
    assert len(console) == 2
    assert asked == ["https://example.com/a.png"]


def widths(addresses: list[str], folder: Path) -> list[int]:
    """How wide each page's content is in a window 390 pixels wide, a phone's."""
    frames = "".join(f'<iframe width="390" height="800" src="{address}"></iframe>' for address in addresses)
    script = (
        "addEventListener('load', () => setTimeout(() => { document.title = 'widths ' + [...document.querySelectorAll("
        "'iframe')].map(f => f.contentDocument.documentElement.scrollWidth).join(' ') }, 5000))"
    )
    (folder / "phone.html").write_text(f"<html><style>iframe {{border: 0}}</style>{frames}<script>{script}</script></html>")
    allow = ("--allow-file-access-from-files", "--disable-web-security")
    dom, _, _ = browse((folder / "phone.html").as_uri(), folder / "profile", *allow)
    found = re.search(r"<title>widths ([\d ]+)</title>", dom)
    assert found, "the pages did not load"
    return [int(width) for width in found[1].split()]


@needs_browser
def test_no_page_is_wider_than_a_phone(html, tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text('<html><div style="width: 700px">wide</div></html>')
    *measured, known = widths([*((html / f"{page}.html").as_uri() for page in LISTED), wide.as_uri()], tmp_path)
    assert known >= 700
    assert {page: width for page, width in zip(LISTED, measured, strict=True) if width > 390} == {}


# The checks of the pages ------------------------------------------------------------------------------------------

GOOD = """<html><head><link rel="stylesheet" href="style.css"><link rel="canonical" href="https://example.com/a">
<script>const a = "b//c";</script></head><body id="top"><img src="a.png" alt="A falling curve."><a href="#top">up</a>
<a href="https://example.com">away</a><a href="b.html#there">b</a></body></html>"""


def book_with(folder: Path, addition: str) -> Path:
    """Two linked pages, the first of which ends with `addition`."""
    (folder / "a.html").write_text(GOOD.replace("</body>", f"{addition}</body>"))
    (folder / "b.html").write_text('<html><p id="there">b</p></html>')
    (folder / "a.png").write_bytes(b"")
    (folder / "style.css").write_text("p { background: url(a.png) }")
    return folder


def test_good_pages_pass(tmp_path):
    assert pages.check(book_with(tmp_path, ""), ["a", "b"]) == []


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ('<script src="https://cdn.example.com/x.js"></script>', "<script> loads"),
        ('<script src="//cdn.example.com/x.js"></script>', "<script> loads"),
        ('<link rel="stylesheet" href="http://example.com/x.css">', "<link> loads"),
        ('<link rel="preload" as="font" href="https://example.com/x.woff2">', "<link> loads"),
        ('<img src="https://example.com/badge.svg" alt="A badge.">', "<img> loads"),
        ('<img src="a.png" srcset="https://example.com/a.png 2x" alt="A.">', "<img> loads"),
        ('<iframe src="https://example.com"></iframe>', "<iframe> loads"),
        ('<video poster="https://example.com/a.png"></video>', "<video> loads"),
        ("<style>@import 'https://example.com/x.css';</style>", "a style loads"),
        ("<style>@font-face { src: url(https://example.com/x.woff2) }</style>", "a style loads"),
        ('<p style="background: url(//example.com/x.png)">x</p>', "a style loads"),
        ('<script>import("https://example.com/x.js")</script>', "a script names"),
        ("<pre>Traceback (most recent call last)</pre>", "a traceback"),
        ('<div class="output traceback highlight">ValueError</div>', "a traceback"),
        ('<img src="a.png">', "no alternative text"),
        ('<img src="a.png" alt=" ">', "no alternative text"),
        ('<img src="a.png" alt="../_images/abc.svg">', "is a file's path"),
        ('<a href="c.html">c</a>', "c.html does not exist"),
        ('<a href="../a.html">out</a>', "../a.html does not exist"),
        ('<a href="b.html#nowhere">b</a>', "no such anchor"),
        ('<a href="#nowhere">b</a>', "no such anchor"),
        ('<a href="/a.html">a</a>', "root of the disk"),
        ('<script src="missing.js"></script>', "missing.js does not exist"),
    ],
)
def test_a_bad_page_is_refused(tmp_path, addition, complaint):
    problems = pages.check(book_with(tmp_path, addition), ["a", "b"])
    assert len(problems) == 1
    assert complaint in problems[0]


def test_missing_and_unlisted_pages_are_refused(tmp_path):
    problems = pages.check(book_with(tmp_path, ""), ["a", "c"])
    assert problems == ["c: listed, but not built", "b: built, but not listed"]


def test_remote_style_sheets_are_refused(tmp_path):
    folder = book_with(tmp_path, "")
    (folder / "style.css").write_text("@import url('https://fonts.example.com/css');")
    assert ["style.css: a style loads" in problem for problem in pages.check(folder, ["a", "b"])] == [True]
