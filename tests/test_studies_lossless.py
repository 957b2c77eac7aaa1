"""The study of bytes: what the usual formats are given, what is compared with what, and what is claimed."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line
from PIL import Image

from nbvae import data
from studies import lab
from studies import lossless as study
from studies.lossless import BINARY, ELBO, EMBEDDED, GREY, JPEG, NET, Plan


def sizes_of(values: dict[str, float], elbo: float = 0.5, passes: int = 100) -> pd.DataFrame:
    """Net sizes of three seeds a little apart, and −ELBO."""
    return pd.DataFrame(
        [
            {"objective": kind, "seed": seed, "passes": passes, "quantity": "bits per pixel", "sampler": name, "value": each}
            for kind, value in values.items()
            for seed in range(3)
            for name, each in ((NET, value + 0.001 * seed), (ELBO, elbo + 0.001 * seed))
        ]
    )


def test_independent_pixels_cost_the_entropy_of_each():
    """A pixel that is 1 in a quarter of many images, one that is as likely either way, and one that never changes."""
    generator = np.random.default_rng(0)
    x = np.stack([generator.random(40_000) < 0.25, generator.random(40_000) < 0.5, np.zeros(40_000)], 1).astype(int)
    bits = study.independent(x.reshape(-1, 1, 1, 3), x.reshape(-1, 1, 1, 3), 2) / 40_000
    quarter = 2 - 0.75 * math.log2(3)
    assert bits == pytest.approx(quarter + 1, rel=0.01)
    uniform = generator.integers(17, size=(50_000, 1, 1, 1))
    assert study.independent(uniform, uniform, 17) / 50_000 == pytest.approx(math.log2(17), rel=0.001)


def test_noise_is_not_compressed_and_nothing_is_counted_beside_the_images():
    noise = np.random.default_rng(0).integers(2, size=(500, 1, 8, 8))
    for name, size in study.in_formats(noise, 2).items():
        assert 0.99 < 8 * size / noise.size < 1.25, name
    grey = np.random.default_rng(0).integers(256, size=(500, 1, 8, 8))
    for name, size in study.in_formats(grey, 256).items():
        assert 7.9 < 8 * size / grey.size < 8.6, name


def test_what_pictures_are_given_is_every_image(monkeypatch):
    seen = []
    own = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, *args, **how: (seen.append(np.asarray(self)), own(self, *args, **how))[1]
    )
    x = np.random.default_rng(0).integers(2, size=(13, 1, 4, 6))
    study.in_formats(x, 2)
    assert len(seen) == 2
    for picture in seen:
        flat = (picture if picture.ndim == 2 else picture[..., 0]) > 0
        tiles = [flat[i : i + 4, j : j + 6] for i in range(0, flat.shape[0], 4) for j in range(0, flat.shape[1], 6)]
        assert all((tile == image[0]).all() for tile, image in zip(tiles, x, strict=False))
        assert not any(tile.any() for tile in tiles[13:])


def test_a_jpeg_is_counted_without_its_headers_and_decodes_to_nearly_the_image():
    x = data.load("digits", binarize=None).test[0, 0]
    image = (255 * x).round().numpy().astype(np.uint8)
    sizes = []
    for quality in (10, 50, 95):
        size, again = study.as_jpeg(image, quality)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert size < len(file.getvalue()) - 300
        assert again.shape == (8, 8)
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert np.abs(again.astype(int) - image).max() < 12


def test_jpeg_is_read_at_equal_bytes_and_at_equal_error():
    jpegs = [(1.0, 10.0, 8.0), (50.0, 20.0, 4.0), (90.0, 40.0, 0.0)]
    prefixes = [(2.0, 5.0, 6.0), (1.0, 15.0, 2.0), (0.5, 50.0, 9.0)]
    names = ("bytes", "mse")
    rows = [
        {"objective": kind, place: at, "seed": 0, "quantity": name, "value": value}
        for kind, place, table in ((JPEG, "level", jpegs), (EMBEDDED, "beta", prefixes))
        for at, *values in table
        for name, value in zip(names, values, strict=True)
    ]
    found = study.beside_jpeg(pd.DataFrame(rows)).set_index(["beta", "quantity"])["value"]
    assert found[1.0, "mse of JPEG"] == 6.0
    assert found[2.0, "bytes of JPEG"] == 15.0
    assert found[1.0, "bytes of JPEG"] == 30.0
    for nothing in ((2.0, "mse of JPEG"), (0.5, "mse of JPEG"), (0.5, "bytes of JPEG")):
        assert math.isnan(found[nothing])


@pytest.mark.parametrize(
    ("first", "second", "passed"),
    [
        ({BINARY: 0.5, GREY: 2.0}, {BINARY: 0.5, GREY: 2.0}, [True, True]),
        ({BINARY: 0.5, GREY: 2.0}, {BINARY: 0.4, GREY: 2.0}, [False, True]),
        ({BINARY: 0.51, GREY: 2.0}, {BINARY: 0.51, GREY: 2.0}, [True, False]),  # 2 % above −ELBO
    ],
)
def test_what_is_checked(first, second, passed):
    def both(values, passes):
        return pd.concat([sizes_of({kind: value}, {BINARY: 0.5, GREY: 2.0}[kind], passes) for kind, value in values.items()])

    frame = pd.concat([both(first, 100), both(second, 200)])
    moved, errors, agreed = study._checks(Plan(), frame)
    assert [moved.passed, agreed.passed] == passed
    assert errors.passed


def test_net_sizes_are_held_against_the_elbo_of_the_same_model():
    shares = study.beside_elbo(sizes_of({BINARY: 0.51}))
    np.testing.assert_allclose(shares["value"], [0.51 / 0.5 - 1, 0.511 / 0.501 - 1, 0.512 / 0.502 - 1])
    assert shares["passes"].tolist() == [100] * 3


def test_images_that_cannot_be_coded_are_refused_in_one_line(tmp_path):
    path = str(tmp_path / "mine.npz")
    values = np.random.default_rng(0).random((50, 6)).astype("float32")
    np.savez(path, train=values, test=values[:20])
    one_line(lambda: study.accepted(path, "default", None, 2), "one channel")
    np.savez(path, train=values.reshape(50, 1, 2, 3), test=values[:20].reshape(20, 1, 2, 3))
    one_line(lambda: study.accepted(path, "default", None, 2), "0 and 1")
    assert study.accepted(path, "dynamic", None, 2).is_binary
    values = values.reshape(50, 1, 2, 3)
    np.savez(path, train=values.round(), test=values[:20])
    one_line(lambda: study.accepted(path, "default", None, 2), "0 and 1")
    assert torch.equal(study.accepted("digits", "default", 20, 2).train, data.load("digits").train[:20])


def test_the_grey_values_of_a_file_are_coded_if_there_are_17_or_256_of_them(tmp_path):
    """Bytes, sixteenths and values between, of which no mass on 17 or 256 values is a model."""
    path, generator = str(tmp_path / "mine.npz"), np.random.default_rng(0)
    for levels, made in (
        (256, generator.integers(256, size=(50, 1, 4, 4)).astype(np.uint8)),
        (17, (generator.integers(17, size=(50, 1, 4, 4)) / 16).astype("float32")),
        (0, generator.random((50, 1, 4, 4)).astype("float32")),
        (0, generator.integers(2, size=(50, 1, 4, 4)).astype("float32")),
    ):
        np.savez(path, train=made, test=made[:20])
        assert [study.plan(path, budget).levels for budget in ("full", "quick", "smoke")] == [levels] * 3


def test_a_file_of_any_grey_values_is_coded_in_black_and_white(tmp_path):
    path = str(tmp_path / "mine.npz")
    made = np.random.default_rng(0).random((60, 5, 7)).astype("float32")
    np.savez(path, train=made, test=made[:20])
    found = study.run(study.plan(path, "smoke").changed(binarize="threshold"), lab.Lab(device="cpu"))
    assert set(found.frame["objective"]) == {BINARY, EMBEDDED, study.ALONE, JPEG}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ladder": (1.0, 2.0)}, "ladder must be"),
        ({"levels": 1}, "levels must be"),
        ({"qualities": (50,)}, "qualities must be"),
        ({"qualities": (50, 99, 10)}, "qualities must be"),
        ({"seeds": (0,)}, "two seeds"),
        ({"against": 3.0}, "against must be"),
        ({"coded": 0}, "coded must be"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
