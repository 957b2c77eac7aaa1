"""The live elements of the pages, in a browser: their numbers are torch's, and they are moved by mouse, touch and keys."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import one_line
from test_book import CHROMIUM, needs_browser

from nbvae import analytic, models, notebook
from studies import page_model

BOOK = Path(__file__).resolve().parent.parent / "book"
BETAS = (0.1, 0.7, 9.0, 40.0)


@pytest.fixture(scope="module")
def model() -> models.MultiBetaVAE:
    torch.manual_seed(0)
    made = models.MultiBetaVAE((1, 6, 6), 3, hidden=(7, 5), beta_range=(0.1, 40.0))
    with torch.no_grad():
        for value in made.parameters():
            value += 0.3 * torch.randn_like(value)
    return page_model.unpacked(page_model.packed(made), (1, 6, 6), (0.1, 40.0))


def element(model: models.MultiBetaVAE, size: str = "full") -> notebook.Live:
    images = torch.rand(4, 36, generator=torch.Generator().manual_seed(1)) < 0.4
    arrays = page_model.packed(model) | {"images": np.packbits(images.numpy(), 1), "labels": np.arange(4, dtype="uint8")}
    curve = [{"beta": beta, "rate": 5 / (1 + beta), "distortion": 4 + 10 * beta / (1 + beta)} for beta in BETAS]
    return notebook.live("draw", "A model.", arrays, size=size, side=6, low=0.1, high=40.0, beta=1.0, curve=curve)


def run(folder: Path, made: notebook.Live, script: str) -> dict:
    """What a script returns that is run in a page with this element."""
    program = (
        "addEventListener('load', () => { const root = document.querySelector('[data-live]'); let said;"
        "try { said = (() => {" + script + "})() } catch (error) { said = { error: String(error.stack) } }"
        "const out = document.createElement('pre'); out.id = 'out'; out.textContent = JSON.stringify(said);"
        "document.body.append(out) })"
    )
    (folder / "page.html").write_text(
        f"<html data-content_root='{BOOK.as_uri()}/'><meta charset=utf-8><body>{made.html}<script>{program}</script></html>",
        encoding="utf-8",
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    said = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "error" not in said, said["error"]
    return said


@needs_browser
def test_encoder_and_decoder_in_the_page_are_torchs(model, tmp_path):
    x = (torch.rand(36, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    said = run(
        tmp_path,
        element(model),
        f"const x = {x.tolist()}, found = {{}}; for (const beta of {list(BETAS)}) {{"
        "const code = root.live.model.encode(x, beta);"
        "found[beta] = {mean: [...code.mean], std: [...code.std], nats: [...code.nats],"
        "white: [...root.live.model.decode(code.mean, beta)], D: root.live.model.distortion(x, code, beta, 4000)}"
        "} return found",
    )
    for beta in BETAS:
        view, mine = model.at(beta), said[f"{beta:g}"]
        with torch.no_grad():
            posterior = view.posterior(x.view(1, 1, 6, 6))
            mean, std = posterior.mean[0], posterior.stddev[0]
            nats = 0.5 * (mean**2 + std**2 - 1) - std.log()
            white = view.likelihood(posterior.mean).mean.flatten()
            z = posterior.sample((20_000,))
            each = -view.likelihood(z[:, 0]).log_prob(x.view(1, 1, 6, 6))
        for name, value in (("mean", mean), ("std", std), ("nats", nats), ("white", white)):
            np.testing.assert_allclose(mine[name], value, atol=1e-4, rtol=1e-4)
        error = 5 * each.std().item() * (4000**-0.5 + 20_000**-0.5)
        assert abs(mine["D"] - each.mean().item()) < error + 1e-3


@needs_browser
def test_mouse_touch_and_keys_move_it(model, tmp_path):
    said = run(
        tmp_path,
        element(model),
        """const pad = root.querySelector('canvas.pad'), box = pad.getBoundingClientRect(), seen = {};
        const ink = () => root.live.state.x.reduce((a, b) => a + b, 0);
        const at = (type, c, r, kind) => pad.dispatchEvent(new PointerEvent(type, {bubbles: true, buttons: 1, pointerType: kind,
          pointerId: 1, clientX: box.left + box.width * c / 6, clientY: box.top + box.height * r / 6}));
        const press = (key) => pad.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
        const named = (text) => [...root.querySelectorAll('button')].find((b) => b.textContent == text
          || b.getAttribute('aria-label') == text);
        named('Clear').click(); seen.cleared = ink();
        at('pointerdown', 1.5, 1.5, 'mouse'); at('pointermove', 4.5, 1.5, 'mouse'); at('pointerup', 4.5, 1.5, 'mouse');
        seen.mouse = ink();
        at('pointerdown', 2.5, 4.5, 'touch'); at('pointerup', 2.5, 4.5, 'touch'); seen.touch = ink();
        press('Delete'); seen.deleted = ink();
        press('ArrowLeft'); seen.up = ink(); press(' '); press('ArrowLeft'); press('ArrowUp'); seen.keys = ink(); press(' ');
        press('ArrowUp'); seen.lifted = ink();
        named('Begin with a test image of 2').click(); seen.image = [...root.live.state.x];
        const slider = root.querySelector('input[type=range]'), before = root.live.code.rate;
        slider.value = 100; slider.dispatchEvent(new Event('input'));
        seen.beta = root.live.state.beta; seen.spoken = slider.getAttribute('aria-valuetext');
        seen.rate = root.live.code.rate; seen.before = before; seen.said = root.querySelector('[aria-live]').textContent;
        const first = root.querySelector('.live-row canvas[role=img]'), shown = () => first.toDataURL();
        const old = shown(); named('Draw other codes').click(); seen.other = shown() !== old;
        seen.small = root.querySelectorAll('canvas').length;
        seen.unnamed = [...root.querySelectorAll('button, input, canvas[tabindex], [role=img]')].filter((node) =>
          !node.textContent && !node.getAttribute('aria-label')).length;
        return seen""",
    )
    assert said["cleared"] == said["deleted"] == 0
    assert said["mouse"] > 5  # a stroke of four pixels, and what is beside it
    assert said["touch"] == said["mouse"] + 5
    assert said["up"] == 0  # the pen is up
    assert said["keys"] > 5
    assert said["lifted"] == said["keys"]
    images = torch.rand(4, 36, generator=torch.Generator().manual_seed(1)) < 0.4
    assert said["image"] == images[2].int().tolist()
    assert said["beta"] == pytest.approx(40.0)
    assert said["spoken"] == "β = 40"
    view = model.at(40.0)
    with torch.no_grad():
        exact = torch.distributions.kl_divergence(view.posterior(images[2].float().view(1, 1, 6, 6)), view.prior()).item()
    assert said["rate"] == pytest.approx(exact, abs=1e-3)
    assert f"{exact:.1f} nats of rate" in said["said"]
    assert said["rate"] != said["before"]
    assert said["other"]
    assert said["unnamed"] == 0


@needs_browser
def test_the_small_one_has_no_samples_and_the_text_stands_where_it_does_not_run(model, tmp_path):
    small = run(tmp_path, element(model, "small"), "return {canvases: root.querySelectorAll('canvas').length}")
    assert small["canvases"] == 2
    unknown = notebook.Live(element(model).html.replace('data-live="draw"', 'data-live="other"'), "")
    assert run(tmp_path, unknown, "return {text: root.textContent}")["text"].startswith("A model.")


def test_the_page_holds_what_it_is_given_and_nothing_that_ends_a_script():
    made = notebook.live("draw", "a < b", {"w": np.arange(6, dtype="int8").reshape(2, 3)}, note="</script>")
    assert "a &lt; b" in made.html
    assert made.html.count("</script>") == 2
    data = re.search(r'application/json">(.*?)</script>', made.html)
    assert data
    assert json.loads(data[1])["note"] == "</script>"
    assert json.loads(data[1])["weights"]["w"] == {"type": "int8", "shape": [2, 3], "data": "AAECAwQF"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: notebook.live("fly", "x", {}), "live element must be one of draw, water, hole, arrives"),
        (lambda: notebook.live("draw", "x", {}, size="huge"), "size must be one of full, small"),
        (lambda: notebook.live("draw", "x", {"w": np.zeros(3)}), "the type of w must be one of int8, uint8, float32"),
    ],
)
def test_bad_arguments_in_one_line(call, message):
    one_line(call, message)


SPECTRA = {"one": np.array([5.0, 2.0, 0.5, 0.1], "float32"), "two": np.arange(60, 0, -1).astype("float32")}


def level(handles: str) -> notebook.Live:
    return notebook.live("water", "A water level.", SPECTRA, handles=handles)


@needs_browser
def test_the_water_level_in_the_page_is_shannons_bound(tmp_path):
    levels = [0.05, 0.3, 2.0, 4.999, 5.0, 80.0]
    said = run(
        tmp_path,
        level("level"),
        f"return {json.dumps({name: each.tolist() for name, each in SPECTRA.items()})} && Object.fromEntries("
        f"Object.entries({json.dumps({name: each.tolist() for name, each in SPECTRA.items()})}).map(([name, values]) =>"
        f"[name, {levels}.map((s) => nbvaeLive.waterLevel(values, s))]))",
    )
    for name, values in SPECTRA.items():
        rate, mse = analytic.gaussian_rd(values.astype(float), np.array(levels))
        np.testing.assert_allclose([each["rate"] for each in said[name]], rate, atol=1e-9)
        np.testing.assert_allclose([each["mse"] for each in said[name]], mse, rtol=1e-9)
        assert [each["above"] for each in said[name]] == [(values > s).sum() for s in levels]


MOVE = """const seen = {}, set = (slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) };
const at = () => Object.assign({said: root.querySelector('[aria-live]').textContent}, root.live.state,
  {rate: root.live.rate, mse: root.live.mse});
const sliders = [...root.querySelectorAll('input')], svg = root.querySelector('svg'), box = svg.getBoundingClientRect();
const drag = (share) => svg.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true, buttons: 1,
  clientX: box.left + 9, clientY: box.top + box.height * share}));
"""


@needs_browser
def test_the_water_level_is_moved_by_slider_finger_and_choice(tmp_path):
    said = run(
        tmp_path,
        level("level"),
        MOVE + "seen.first = at(); set(sliders[0], 0); seen.low = at(); set(sliders[0], 200); seen.high = at();"
        "drag(.5); seen.middle = at(); drag(0); seen.top = at(); seen.value = sliders[0].value;"
        "const choice = root.querySelector('select'); choice.value = 'two'; choice.dispatchEvent(new Event('change'));"
        "seen.other = at(); return seen",
    )
    assert said["first"]["s"] == pytest.approx(0.5, rel=1e-5)
    assert said["low"]["s"] == pytest.approx(0.09, rel=1e-5)
    assert said["high"]["rate"] == 0
    assert said["high"]["mse"] == pytest.approx(7.6, rel=1e-6)
    assert "0 of 4 directions" in said["high"]["said"]
    assert said["low"]["s"] < said["middle"]["s"] < said["high"]["s"]
    assert said["top"]["s"] == pytest.approx(said["high"]["s"])
    assert said["value"] == "200"
    assert said["other"]["name"] == "two"
    rate, mse = analytic.gaussian_rd(SPECTRA["two"].astype(float), said["other"]["s"])
    assert (said["other"]["rate"], said["other"]["mse"]) == (pytest.approx(rate), pytest.approx(mse))


@needs_browser
def test_with_two_handles_only_their_product_moves_the_point_and_sigma_the_distortion(tmp_path):
    said = run(
        tmp_path,
        level("both"),
        MOVE + "seen.first = at(); set(sliders[0], 150); seen.beta = at(); set(sliders[1], 20); seen.sigma = at(); return seen",
    )
    for each in said.values():
        assert each["s"] == pytest.approx(each["beta"] * each["sigma"] ** 2)
        rate, mse = analytic.gaussian_rd(SPECTRA["one"].astype(float), each["s"])
        assert (each["rate"], each["mse"]) == (pytest.approx(rate), pytest.approx(mse, rel=1e-5))
        distortion = each["mse"] / (2 * each["sigma"] ** 2) + 2 * np.log(2 * np.pi * each["sigma"] ** 2)
        assert f"the distortion is {distortion:.1f} nats" in each["said"]
    assert said["first"]["sigma"] == said["beta"]["sigma"] != said["sigma"]["sigma"]
