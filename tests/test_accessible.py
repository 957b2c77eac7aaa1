"""The pages for those who hear them, use the keyboard, or see little: axe-core finds no fault in either theme."""

import json
from pathlib import Path

import pytest
from test_book import CHROMIUM, LISTED, needs_browser

import mend

WIDTHS, THEMES = (1300, 390), ("light", "dark")
# axe would fetch style sheets, which no page that is a file may.
RULES = "axe.run(document, {preload: false})"
COLOURS = "axe.run(document, {preload: false, runOnly: ['color-contrast']})"  # the rest is the same in either theme


def test_what_the_tools_write_is_mended_and_nothing_else(tmp_path):
    page = tmp_path / "a.html"
    page.write_text(
        '<div id="pst-primary-sidebar"><summary><span class="toctree-toggle" role="presentation"></span></summary></div>'
        '<div role="list" class="citation-list"><div class="citation" role="doc-biblioentry">A</div></div>'
        '<dl class="py"><dt class="sig sig-object" id="f">f(<dl>\n<dd>x</dd>\n</dl>)</dt><dd>text</dd></dl>'
        "<dl><dt>term</dt><dd>meaning</dd></dl>"
        '<table class="table"><tr><th class="head"></th><th class="head text-right"><p>R</p></th></tr></table>'
    )
    mend.mend(tmp_path)
    assert page.read_text() == (
        '<div id="pst-primary-sidebar" role="complementary" aria-label="The book">'
        '<summary aria-label="Pages inside"><span class="toctree-toggle" role="presentation"></span></summary></div>'
        '<div class="citation-list"><div class="citation">A</div></div>'
        '<dl class="py"><dt class="sig sig-object" id="f">f(<ul>\n<li>x</li>\n</ul>)</dt><dd>text</dd></dl>'
        "<dl><dt>term</dt><dd>meaning</dd></dl>"
        '<table class="table" tabindex="0"><tr><td></td><th class="head text-right"><p>R</p></th></tr></table>'
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[pages]'")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install -e '.[pages]'")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@needs_browser
@pytest.mark.parametrize("name", [*LISTED, "search"])
def test_axe_finds_no_fault_in_a_page(html, browser, axe, name):
    asked, said, faults = [], [], {}
    for width in WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=THEMES[0])
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((html / f"{name}.html").as_uri())
        page.wait_for_timeout(1000)  # for formulas
        page.evaluate(axe)
        for theme, rules in zip(THEMES, (RULES, COLOURS), strict=True):
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            page.wait_for_timeout(300)  # colours change slowly
            for each in page.evaluate(rules)["violations"]:
                faults[f"{each['id']}, {theme}, {width} px"] = [node["html"][:200] for node in each["nodes"][:3]]
        page.close()
    assert not faults, json.dumps(faults, indent=1, ensure_ascii=False)
    assert not said
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


@needs_browser
def test_axe_would_find_a_fault(browser, axe, tmp_path):
    (tmp_path / "bad.html").write_text("<html lang=en><title>x</title><main><h1>x</h1><img src=x.png></main></html>")
    page = browser.new_page()
    page.goto((tmp_path / "bad.html").as_uri())
    page.evaluate(axe)
    assert [each["id"] for each in page.evaluate(RULES)["violations"]] == ["image-alt"]
    page.close()
