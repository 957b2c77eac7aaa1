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
from studies import hole, page_model

BOOK = Path(__file__).resolve().parent.parent / "book"
BETAS = (0.1, 0.7, 9.0, 40.0)


@pytest.fixture(scope="module")
def model() -> models.MultiBetaVAE:
    return scrambled(3)


def scrambled(latent_dim: int) -> models.MultiBetaVAE:
    """A small model whose weights are kept in eight bits, and whose modulations are not those of its beginning."""
    torch.manual_seed(0)
    made = models.MultiBetaVAE((1, 6, 6), latent_dim, hidden=(7, 5), beta_range=(0.1, 40.0))
    with torch.no_grad():
        for value in made.parameters():
            value += 0.3 * torch.randn_like(value)
    return page_model.unpacked(page_model.packed(made), (1, 6, 6), (0.1, 40.0))


def element(model: models.MultiBetaVAE, size: str = "full") -> notebook.Live:
    images = torch.rand(4, 36, generator=torch.Generator().manual_seed(1)) < 0.4
    arrays = page_model.packed(model) | {"images": np.packbits(images.numpy(), 1), "labels": np.arange(4, dtype="uint8")}
    curve = [{"beta": beta, "rate": 5 / (1 + beta), "distortion": 4 + 10 * beta / (1 + beta)} for beta in BETAS]
    return notebook.live("draw", "A model.", arrays, size=size, side=6, low=0.1, high=40.0, beta=1.0, curve=curve)


def run(folder: Path, made: notebook.Live, script: str, *options: str) -> dict:
    """What a script returns that is run in a page with this element; `options` are the browser's."""
    program = (
        "addEventListener('load', async () => { const root = document.querySelector('[data-live]'); let said;"
        "try { said = await (async () => {" + script + "})() } catch (error) { said = { error: String(error.stack) } }"
        "const out = document.createElement('pre'); out.id = 'out'; out.textContent = JSON.stringify(said);"
        "document.body.append(out) })"
    )
    (folder / "page.html").write_text(
        f"<html data-content_root='{BOOK.as_uri()}/'><meta charset=utf-8><body>{made.html}<script>{program}</script></html>",
        encoding="utf-8",
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", (folder / "page.html").as_uri()]
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


REACH, STEPS, CODES = 3.5, (0.2, 5.0), 24


@pytest.fixture(scope="module")
def plane() -> tuple[models.MultiBetaVAE, dict[str, np.ndarray]]:
    """A model of two latents, with codes and densities for two βs that are no model's: the second has a hole on the right."""
    model = scrambled(2)
    generator = np.random.default_rng(3)
    z = np.linspace(-REACH, REACH, 15)
    near = -np.log(2 * np.pi) - (z[None, :] ** 2 + z[:, None] ** 2) / 2
    arrays = {name: value for name, value in page_model.packed(model).items() if not name.startswith("encoder.layers.0.w")}
    arrays["codes"] = generator.normal(size=(2, CODES, 2)).astype("float32")
    arrays["density"] = np.stack(
        [hole.kept_density(each) for each in (near + 0.1, np.where(z[None, :] > 0, near - 3, near + 1))]
    )
    return model, arrays | {"labels": (np.arange(CODES) % 10).astype("uint8")}


def codes(arrays: dict[str, np.ndarray]) -> notebook.Live:
    told = {"low": 0.1, "high": 40.0, "betas": STEPS, "reach": REACH, "thin": 0.25, "lowest": hole.LOWEST, "step": hole.STEP}
    return notebook.live("hole", "A hole.", arrays, side=6, beta=STEPS[0], **told)


ACT = """const seen = {}, named = (text) => [...root.querySelectorAll('button')].find((b) => b.textContent === text
  || b.getAttribute('aria-label') === text);
const slider = root.querySelector('input'), set = (value) => { slider.value = value; slider.dispatchEvent(new Event('input')) };
const words = () => root.querySelector('[aria-live]').textContent;
const heading = () => root.querySelector('.wide:last-child p').textContent;
const svg = root.querySelector('svg'), box = svg.getBoundingClientRect();
const at = (type, x, y, kind, buttons) => svg.dispatchEvent(new PointerEvent(type, {bubbles: true, buttons, pointerType: kind,
  clientX: box.left + box.width * x, clientY: box.top + box.height * y}));
const press = (key, shiftKey) => svg.dispatchEvent(new KeyboardEvent('keydown', {key, shiftKey, bubbles: true}));
const unnamed = () => [...root.querySelectorAll('button, input, svg[tabindex], [role=img]')].filter((node) =>
  !node.textContent && !node.getAttribute('aria-label')).length;
"""


@needs_browser
def test_the_point_is_decoded_and_its_densities_are_torchs(plane, tmp_path):
    model, arrays = plane
    points = np.random.default_rng(4).normal(size=(12, 2)).round(3)
    said = run(
        tmp_path,
        codes(arrays),
        ACT + f"for (const index of [0, 1]) seen[index] = {points.tolist()}.map((z) => {{ root.live.state.z = z; set(index);"
        "return {white: [...root.live.image], p: root.live.logP, q: root.live.logQ} }); return seen",
    )
    for index, beta in enumerate(STEPS):
        z = torch.tensor(points)
        with torch.no_grad():
            white = model.at(beta).likelihood(z.float()).mean.flatten(1)
        mine = {name: [each[name] for each in said[str(index)]] for name in ("white", "p", "q")}
        np.testing.assert_allclose(mine["white"], white, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(mine["p"], hole.log_prior(z), atol=1e-9)
        np.testing.assert_allclose(mine["q"], hole.at(arrays["density"][index], points, REACH), atol=1e-9)


@needs_browser
def test_mouse_touch_and_keys_move_the_cross_and_it_says_where_a_hole_is(plane, tmp_path):
    said = run(
        tmp_path,
        codes(plane[1]),
        ACT
        + """const z = () => [...root.live.state.z];
        seen.first = words();
        at('pointermove', .75, .25, 'mouse', 0); seen.mouse = z();
        at('pointermove', .5, .5, 'touch', 0); seen.over = z();
        at('pointerdown', .5, .5, 'touch', 1); at('pointermove', .25, .5, 'touch', 1); seen.touch = z();
        at('pointermove', -1, 2, 'touch', 1); seen.beyond = z();
        at('pointerdown', .5, .5, 'mouse', 1); press('ArrowRight', true); press('ArrowUp', false); seen.keys = z();
        set(1); seen.spoken = slider.getAttribute('aria-valuetext'); seen.hole = words();
        at('pointermove', .4, .5, 'mouse', 0); seen.dense = words();
        at('pointermove', 1, 1, 'mouse', 0); seen.far = words();
        seen.unnamed = unnamed(); return seen""",
    )
    unit = REACH * 15 / 14  # the outer nodes are half a pixel of the shade inside
    assert "as dense here as the prior." in said["first"]
    np.testing.assert_allclose(said["mouse"], [0.5 * unit, 0.5 * unit], atol=0.02)
    assert said["over"] == said["mouse"]  # a finger that is not down points nowhere
    np.testing.assert_allclose(said["touch"], [-0.5 * unit, 0], atol=0.02)
    assert said["beyond"] == [-REACH, -REACH]
    np.testing.assert_allclose(said["keys"], [0.5, 0.1], atol=0.02)
    assert said["spoken"] == "β = 5"
    assert "z = (0.5, 0.1): log p(z) = −2.0" in said["hole"]
    assert "times thinner here than the prior: a hole." in said["hole"]
    assert "denser here than the prior." in said["dense"]
    assert said["far"].count("small here, too.") == 1
    assert re.search(r"The ten nearest codes: (\d+ of \d(, )?)+\.", said["far"])
    assert said["unnamed"] == 0


@needs_browser
def test_draws_of_the_prior_are_half_in_the_hole_and_those_of_the_aggregate_are_codes(plane, tmp_path):
    said = run(
        tmp_path,
        codes(plane[1]),
        ACT
        + """const all = () => ({draws: root.live.draws.map((z) => [...z]), heading: heading(),
          dashed: root.querySelectorAll('button.hole').length});
        seen.before = all(); set(1); seen.prior = all();
        named('Draw from the prior').click(); seen.again = all();
        named('Draw from the aggregate').click(); seen.codes = all();
        const one = [...root.querySelectorAll('button.image')][3]; seen.name = one.getAttribute('aria-label'); one.click();
        seen.z = [...root.live.state.z]; return seen""",
    )
    assert said["before"]["dashed"] == 0
    assert said["prior"]["draws"] == said["before"]["draws"] != said["again"]["draws"]
    for each in (said["prior"], said["again"]):
        holes = sum(z[0] > 0.25 for z in each["draws"])
        between = sum(0 < z[0] <= 0.25 for z in each["draws"])  # the density is bilinear
        assert holes <= each["dashed"] <= holes + between
        assert each["heading"].startswith(f"Ten draws from the prior: {each['dashed']} in holes")
    table = plane[1]["codes"][1].tolist()
    assert all(z in table for z in said["codes"]["draws"])
    assert said["codes"]["heading"].startswith("Ten draws from the aggregate, codes of test images:")
    assert said["name"] in ("Draw 4: go there", "Draw 4, in a hole: go there")
    np.testing.assert_allclose(said["z"], said["codes"]["draws"][3])


@pytest.fixture(scope="module")
def ladder() -> tuple[dict[str, np.ndarray], dict]:
    """Three images, two draws, and a picture before each of three codes and after it."""
    generator = np.random.default_rng(5)
    arrays = {
        "pictures": generator.integers(0, 256, (3, 2, 4, 36)).astype("uint8"),
        "images": np.packbits(generator.random((3, 36)) < 0.4, 1),
        "labels": np.array([7, 1, 3], "uint8"),
        "nats": np.array([[0, 1, 4, 9], [0, 2, 5, 8], [0, 1, 3, 20]], "float32"),
        "distortion": np.array([[40, 30, 20, 10.26], [30, 20, 12, 9], [50, 45, 30, 25]], "float32"),
    }
    means = [(0.0, 40.0), (1.3, 31.0), (4.2, 20.0), (12.4, 15.0)]
    points = [{"nats": nats, "distortion": distortion} for nats, distortion in means]
    alone = [{**point, "nats": 0.9 * point["nats"]} for point in points[1:]]
    return arrays, {"side": 6, "curve": points, "alone": alone}


def arriving(ladder: tuple[dict[str, np.ndarray], dict]) -> notebook.Live:
    return notebook.live("arrives", "Codes arrive.", ladder[0], **ladder[1])


SEEN = (
    ACT
    + """const shown = (canvas) => [...canvas.getContext('2d').getImageData(0, 0, 6, 6).data].filter((_, i) => i % 4 === 0);
const all = () => ({...root.live.state, nats: root.live.nats, left: root.live.distortion,
  received: shown(root.querySelectorAll('canvas')[0]), sent: shown(root.querySelectorAll('canvas')[1]), words: words(),
  dot: ['cx', 'cy'].map((name) => Number([...root.querySelectorAll('circle')].at(-1).getAttribute(name))),
  strip: [...root.querySelectorAll('.live-row canvas[role=img]')].filter((each) => each.style.visibility !== 'hidden').length});
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
"""
)


@needs_browser
def test_each_prefix_has_its_picture_its_nats_and_its_point(ladder, tmp_path):
    arrays = ladder[0]
    said = run(
        tmp_path,
        arriving(ladder),
        SEEN
        + """for (const image of ['Send a 7', 'Send a 1', 'Send a 3']) { named(image).click();
          seen[image] = [0, 1, 2, 3].map((stage) => (set(stage), all())) }
        named('Another draw of the codes').click(); seen.other = all(); named('Send a 7').click(); set(3); seen.end = all();
        seen.unnamed = unnamed(); return seen""",
    )
    bits = np.unpackbits(arrays["images"], 1, 36)
    for i, label in enumerate(arrays["labels"]):
        for stage, each in enumerate(said[f"Send a {label}"]):
            assert (each["image"], each["stage"], each["strip"]) == (i, stage, stage + 1)
            assert each["received"] == arrays["pictures"][i, 0, stage].tolist()
            assert each["sent"] == (255 * bits[i]).tolist()
            assert (each["nats"], each["left"]) == (arrays["nats"][i, stage], arrays["distortion"][i, stage])
            # On the axes of the page, from nothing to a tenth above the largest.
            place = [44 + 266 * each["nats"] / (1.1 * 20), 190 - 180 * each["left"] / (1.1 * 50)]
            np.testing.assert_allclose(each["dot"], place, atol=1e-3)
            assert f"{each['left']:.1f} nats are" in each["words"]
            assert f"{each['nats']:.1f} nats have arrived" in each["words"] or not stage
    assert said["other"]["received"] == arrays["pictures"][2, 1, 3].tolist()
    assert said["end"]["words"].endswith("the ladder costs 12.4 nats, its last code alone 11.2.")
    assert said["unnamed"] == 0


@needs_browser
def test_play_steps_to_the_end_and_stops_and_a_reader_who_wants_no_motion_has_no_play(ladder, tmp_path):
    said = run(
        tmp_path,
        arriving(ladder),
        SEEN
        + """named('Next code').click(); seen.next = all(); set(0);
        const play = named('Play'); seen.offered = !play.hidden; play.click(); seen.while = play.textContent;
        await wait(1000); seen.one = all(); play.click(); seen.stopped = play.textContent; await wait(2000); seen.still = all();
        play.click(); await wait(4000); seen.end = all(); seen.after = play.textContent;
        play.click(); seen.again = all(); set(2); seen.moved = play.textContent; return seen""",
        "--virtual-time-budget=20000",
    )
    assert said["offered"]
    assert [said[name]["stage"] for name in ("next", "one", "still", "end", "again")] == [1, 1, 1, 3, 0]
    assert [said[name] for name in ("while", "stopped", "after", "moved")] == ["Stop", "Play", "Play", "Play"]
    calm = run(tmp_path, arriving(ladder), SEEN + "return {hidden: named('Play').hidden}", "--force-prefers-reduced-motion")
    assert calm["hidden"]


@needs_browser
@pytest.mark.parametrize("name", ["hole", "arrives"])
def test_until_it_runs_and_where_it_does_not_there_is_a_text(plane, ladder, name, tmp_path):
    made = codes(plane[1]) if name == "hole" else arriving(ladder)
    assert made.text in made.html
    unknown = notebook.Live(made.html.replace(f'data-live="{name}"', 'data-live="other"'), "")
    assert run(tmp_path, unknown, "return {text: root.textContent}")["text"].startswith(made.text)
    assert not run(tmp_path, made, "return {text: root.textContent.includes('weights')}")["text"]


@pytest.mark.parametrize("name", ["live.js", "search.js"])
def test_the_programs_of_the_pages_are_small(name):
    """No page loads two of them: there is no live element on the page of search results."""
    assert {file.name for file in (BOOK / "_static").glob("*.js")} == {"live.js", "search.js"}
    assert (BOOK / "_static" / name).stat().st_size < 40_000
