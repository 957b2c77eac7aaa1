"""Data: published hashes and counts, splits that share nothing, seeded draws, and bad files refused in one line."""

import gzip
import hashlib
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from errors import one_line
from skimage import data as photographs
from sklearn.datasets import load_digits, load_sample_images

from nbvae import data
from nbvae.data import gaussian, idx, patches

HOME = os.environ.get("NBVAE_DATA")
needs_mnist = pytest.mark.skipif(
    not HOME or not (Path(HOME) / "mnist").is_dir(),
    reason="MNIST is not here: set NBVAE_DATA to the folder that holds mnist/",
)


def refusal(*arguments, error: type[Exception] = ValueError, **options) -> str:
    """The message of `load`'s refusal: one line, without a second exception behind it."""
    raised = one_line(lambda: data.load(*arguments, **options), error=error)
    assert raised.__cause__ is None
    assert raised.__context__ is None or raised.__suppress_context__
    return str(raised)


@pytest.fixture(scope="module")
def mnist():
    return data.load("mnist")


@pytest.fixture(scope="module")
def grey_mnist():
    return data.load("mnist", binarize=None)


# digits


def test_digits_are_those_of_scikit_learn_each_once():
    digits = data.load("digits", binarize=None)
    assert digits.shape == (1, 8, 8)
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1200, 200, 397]
    images, labels = load_digits(return_X_y=True)
    ours = torch.cat([digits.train, digits.validation, digits.test]).flatten(1).double().numpy() * 16
    our_labels = torch.cat([digits.train_labels, digits.validation_labels, digits.test_labels]).numpy()
    assert digits.train.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    rows = [sorted(map(tuple, np.column_stack(pair))) for pair in ((images, labels), (ours, our_labels))]
    assert rows[0] == rows[1]


def test_digits_do_not_change_from_run_to_run():
    assert data.load("digits").sha256 == "76a4b90532b7156d9e33174414b72d6095477971b022ef7c043748ad52350209"


def test_the_hash_is_that_of_the_content():
    digits = data.load("digits")
    assert len({data.load("digits", binarize=how).sha256 for how in data.BINARIZE}) == 4
    parts = [digits.train, digits.validation, digits.test]
    assert data.Dataset("other", *parts).sha256 == data.Dataset("mine", *(part.clone() for part in parts)).sha256
    altered = digits.test.clone()
    altered[5, 0, 3, 3] = 1 - altered[5, 0, 3, 3]
    assert data.Dataset("other", *parts[:2], altered).sha256 != data.Dataset("other", *parts).sha256


@pytest.mark.parametrize("how", ["threshold", "static"])
def test_binarised_pixels_are_zero_or_one(how):
    grey, binary = data.load("digits", binarize=None), data.load("digits", binarize=how)
    assert not grey.is_binary
    assert binary.is_binary
    for split in data.SPLITS:
        x, y = getattr(grey, split), getattr(binary, split)
        assert ((y == 0) | (y == 1)).all()
        assert torch.equal(y[x == 0], x[x == 0])
        assert torch.equal(y[x == 1], x[x == 1])
        if how == "threshold":
            assert torch.equal(y, (x > 0.5).float())
        else:
            # A mean of independent Bernoulli draws: five standard deviations.
            assert abs((y - x).mean()) < 5 * ((x * (1 - x)).sum().sqrt() / x.numel())
    assert torch.equal(binary.train, data.load("digits", binarize=how).train)


def test_dynamic_binarisation_draws_the_training_pixels_afresh_and_the_others_once():
    grey, static, dynamic = (data.load("digits", binarize=how) for how in (None, "static", "dynamic"))
    assert dynamic.is_binary
    assert torch.equal(dynamic.train, grey.train)
    assert torch.equal(dynamic.validation, static.validation)
    assert torch.equal(dynamic.test, static.test)
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack([dynamic.draw(dynamic.train, generator) for _ in range(50)])
    assert ((draws == 0) | (draws == 1)).all()
    assert not torch.equal(draws[0], draws[1])
    x = dynamic.train
    assert abs((draws - x).mean()) < 5 * ((x * (1 - x)).sum() / 50).sqrt() / x.numel()
    assert torch.equal(dynamic.draw(x, generator.manual_seed(3)), draws[0])
    assert torch.equal(dynamic.draw(dynamic.test), dynamic.test)
    assert static.draw(static.train) is static.train


@pytest.mark.parametrize("how", ["static", "dynamic", None])
def test_loading_leaves_the_global_random_streams_alone(how):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = data.load("digits", binarize=how)
    if how is None:
        data.load("patches", sizes=(10, 10, 10))
        data.load("gaussian", sizes=(10, 10, 10))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(6)
    assert data.load("digits", binarize=how).sha256 == first.sha256


# patches


@pytest.mark.parametrize("shapes", [[(427, 640), (427, 640)], [(300, 451), (512, 512), (40, 100)]])
def test_no_pixel_of_a_photograph_is_in_two_splits_of_patches(shapes):
    """Pictures whose pixels are their own addresses show where each patch comes from."""
    pictures = [np.arange(h * w).reshape(h, w) + 10**6 * number for number, (h, w) in enumerate(shapes)]
    sizes = (4000, 1500, 1500)
    parts = patches.cut(pictures, sizes)
    seen = [set(part.ravel().tolist()) for part in parts]
    for one, two in itertools.combinations(seen, 2):
        assert not one & two
    for part, size in zip(parts, sizes, strict=True):
        assert part.shape == (size, 16, 16)
        assert {address // 10**6 for address in part[:, 0, 0].tolist()} == set(range(len(shapes)))
        # A piece of one picture: as far from row to row as its width.
        for number, (_, width) in enumerate(shapes):
            inside = part[part[:, 0, 0] // 10**6 == number]
            steps = np.add.outer(width * np.arange(16), np.arange(16))
            np.testing.assert_array_equal(inside - inside[:, :1, :1], steps[None].repeat(len(inside), 0))


def test_patches_are_at_different_places_and_all_places_are_equally_likely():
    """All of them, if as many are asked for; else, each picture has its share of the places within five deviations."""
    pictures = [np.arange(60 * 160).reshape(60, 160), np.arange(40 * 200).reshape(40, 200) + 10**6]
    rooms = [np.array([45 * (w - 15), 25 * (v - 15)]) for w, v in ((96, 120), (32, 40), (32, 40))]
    for part, room in zip(patches.cut(pictures, [int(room.sum()) for room in rooms]), rooms, strict=True):
        assert len(set(part[:, 0, 0].tolist())) == len(part) == room.sum()
    for part, room in zip(patches.cut(pictures, (1000, 200, 200)), rooms, strict=True):
        assert len(set(part[:, 0, 0].tolist())) == len(part)
        share = room[1] / room.sum()
        assert abs((part[:, 0, 0] >= 10**6).mean() - share) < 5 * (share * (1 - share) / len(part)) ** 0.5


def test_patches_are_pieces_of_the_photographs_without_the_training_mean():
    ours = data.load("patches", sizes=(3000, 200, 201))
    assert ours.shape == (1, 16, 16)
    assert [len(part) for part in (ours.train, ours.validation, ours.test)] == [3000, 200, 201]
    assert ours.train_labels is ours.test_labels is ours.factors is None
    assert not ours.is_binary
    assert ours.train.double().mean(0).abs().max() < 1e-7
    assert ours.test.mean(0).abs().max() > 1e-3
    colour = [*load_sample_images().images, photographs.astronaut(), photographs.chelsea(), photographs.coffee()]
    grey = [np.einsum("hwc,c->hw", picture, [0.299, 0.587, 0.114]) / 255 for picture in colour]
    textures = (photographs.camera(), photographs.brick(), photographs.grass(), photographs.gravel())
    pictures = [*grey[:3], textures[0] / 255, *grey[3:], *(picture / 255 for picture in textures[1:])]
    raw = patches.cut(pictures, (3000, 200, 201))
    assert min(part.min() for part in raw) >= 0
    assert max(part.max() for part in raw) <= 1
    for part, split in zip(raw, data.SPLITS, strict=True):
        np.testing.assert_allclose(getattr(ours, split)[:, 0], part - raw[0].mean(0), atol=1e-6)


def test_patches_do_not_change_from_run_to_run():
    ours = data.load("patches")
    assert [len(part) for part in (ours.train, ours.validation, ours.test)] == [40_000, 5_000, 5_000]
    assert ours.sha256 == "992ef92142d22db322d1b8ebc110b5187667ae5986b60d58f1b87cbda109e793"


def test_patches_have_no_binarisation_and_a_largest_size():
    for how in ("static", "threshold", "dynamic"):
        assert refusal("patches", binarize=how).startswith("binarize must be None for patches")
    assert data.load("patches", binarize=None, sizes=(8, 8, 8)).binarize is None
    assert "at most 238857 for the test split" in refusal("patches", sizes=(10, 10, 10**6))
    assert "three whole numbers" in refusal("patches", sizes=5)
    assert refusal("patches", sizes=(1, 0, 1)) == "sizes[1] must be a whole number >= 1, got 0"


# gaussian


def test_gaussian_samples_have_the_covariance_they_should():
    samples = data.load("gaussian")
    assert samples.shape == (8,)
    assert [len(part) for part in (samples.train, samples.validation, samples.test)] == [60_000, 10_000, 10_000]
    covariance = data.gaussian_covariance()
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[::-1], data.SPECTRUM, atol=1e-12)
    for part in (samples.train, samples.test):
        x = part.double().numpy()
        n = len(x)
        # Whitened, the sample covariance is I within a standard deviation of 1/√n, √(2/n) on the diagonal.
        white = np.linalg.solve(np.linalg.cholesky(covariance), x.T)
        assert abs(white @ white.T / n - np.eye(8)).max() < 5 * np.sqrt(2 / n)
        assert abs(white.mean(1)).max() < 5 / np.sqrt(n)


def test_gaussian_options():
    small = {"sizes": (20, 10, 10)}
    one, two = (data.load("gaussian", seed=seed, **small) for seed in (0, 1))
    assert torch.equal(one.train, data.load("gaussian", **small).train)
    assert not torch.equal(one.train, two.train)
    assert not torch.equal(one.validation, one.test)
    flat = data.load("gaussian", spectrum=[2, 0, 1], sizes=[100, 10, 10])
    assert np.linalg.matrix_rank(flat.train.double().numpy(), tol=1e-4) == 2
    assert np.linalg.det(gaussian.rotated([1.0] * 5)[0]) == pytest.approx(1)
    np.testing.assert_allclose(data.gaussian_covariance([3.0]), [[3.0]])
    for bad in ([], [0, 0], [1, -1], [1, np.nan], [1, np.inf], 3, "abc", None, [[1, 2]], np.full(200, -1.0)):
        assert refusal("gaussian", spectrum=bad).startswith("spectrum must be a list of finite numbers >= 0, not all zero")
    assert refusal("gaussian", seed=-1) == "seed must be a whole number >= 0, got -1"
    assert refusal("gaussian", binarize="static").startswith("binarize must be None for gaussian")


# mnist


@needs_mnist
def test_mnist_is_the_published_one(mnist, grey_mnist):
    assert mnist.shape == (1, 28, 28)
    assert mnist.binarize == "static"
    assert [len(part) for part in (mnist.train, mnist.validation, mnist.test)] == [50_000, 10_000, 10_000]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    counts = torch.bincount(torch.cat([mnist.train_labels, mnist.validation_labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The two constants that everybody normalises MNIST by, over the 60,000.
    parts = (grey_mnist.train, grey_mnist.validation)
    mean, square = (sum(float((x**p).sum(dtype=torch.float64)) for x in parts) / (60_000 * 784) for p in (1, 2))
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert (square - mean**2) ** 0.5 == pytest.approx(0.3081, abs=5e-5)
    assert not grey_mnist.is_binary


@needs_mnist
def test_static_mnist_has_the_grey_mean_and_does_not_change_from_run_to_run(mnist, grey_mnist):
    assert mnist.is_binary
    for split in data.SPLITS:
        x, y = getattr(grey_mnist, split), getattr(mnist, split)
        deviation = float((x * (1 - x)).sum(dtype=torch.float64)) ** 0.5 / x.numel()
        assert abs(float((y - x).mean(dtype=torch.float64))) < 5 * deviation
    assert mnist.sha256 == "011fd78240ecbadeb061608ab03c28a49d91f9e50bad6418d9c8264d4ec479f7"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data, an empty cache and no network; returns the three folders' parent and the list of addresses tried."""
    tried = []

    def unreachable(url, *arguments, **options):
        tried.append(url)
        raise ConnectionError("Max retries exceeded\nName or service not known")

    monkeypatch.setenv("NBVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(pooch, "retrieve", unreachable)
    return tmp_path, tried


HOSTS = {
    "mnist": ["ossci-datasets.s3.amazonaws.com", "storage.googleapis.com"],
    "fashion_mnist": ["fashion-mnist.s3-website.eu-central-1.amazonaws.com", "raw.githubusercontent.com"],
    "kmnist": ["codh.rois.ac.jp", "codh.rois.ac.jp"],
}
FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


@pytest.mark.parametrize("name", HOSTS)
def test_without_a_network_the_answer_says_where_the_files_are_expected(nowhere, name):
    folder, tried = nowhere
    message = refusal(name, error=FileNotFoundError)
    assert message.startswith(f"{name} is neither here nor to be downloaded")
    assert str(folder / "data" / name) in message
    assert str(folder / "cache" / "nbvae" / name) in message
    assert all(f"{file}.gz" in message for file in FILES)
    assert [url.split("/")[2] for url in tried] == HOSTS[name]
    assert list((folder / "cache" / "nbvae" / name).iterdir()) == []


def stand_in(monkeypatch, name: str) -> dict[str, bytes]:
    """Gzips of the names, form and size of a data set's files, each digit ten times in a row; hashed as the real ones are."""
    published = {}
    for file, shape in FILES.items():
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        rows = np.arange(shape[0]) // 10 % 10
        body = rows if len(shape) == 1 else np.broadcast_to(20 * rows[:, None, None], shape)
        published[file] = gzip.compress(header + body.astype(np.uint8).tobytes(), 1, mtime=0)
        hashed = gzip.decompress(published[file]) if name == "mnist" else published[file]
        monkeypatch.setitem(idx.SOURCES[name].sha256, file, hashlib.sha256(hashed).hexdigest())
    return published


@pytest.mark.parametrize("name", HOSTS)
def test_a_download_is_verified_cached_and_done_once(nowhere, monkeypatch, name):
    folder, tried = nowhere
    published = stand_in(monkeypatch, name)

    def retrieve(url, known_hash, fname, path, **options):
        tried.append(url)
        if url.startswith(idx.SOURCES[name].mirrors[0]):  # the first mirror answers every request with a page of its own
            content = b"<html>please log in</html>"
        else:
            content = published[url.split("/")[-1].removesuffix(".gz")]
        (Path(path) / fname).write_bytes(content)
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    first = data.load(name, binarize=None)
    assert len(tried) == 8
    assert {path.name: path.read_bytes() for path in (folder / "cache/nbvae" / name).iterdir()} == {
        f"{file}.gz": content for file, content in published.items()
    }
    assert [len(part) for part in (first.train, first.validation, first.test)] == [50_000, 10_000, 10_000]
    assert first.shape == (1, 28, 28)
    for split in data.SPLITS:
        labels = getattr(first, f"{split}_labels")
        assert torch.equal(labels, torch.arange(len(labels)) // 10 % 10)
        assert torch.equal(getattr(first, split)[:, 0], (20 * labels / 255).float()[:, None, None].expand(-1, 28, 28))
    assert data.load(name).binarize == "static"
    assert len(tried) == 8


@pytest.mark.parametrize("name", HOSTS)
def test_another_gzip_of_the_content_is_taken_where_the_hash_is_of_the_content(nowhere, monkeypatch, name):
    folder, tried = nowhere
    published = stand_in(monkeypatch, name)
    for file, packed in published.items():
        path = folder / "data" / name / f"{file}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(gzip.decompress(packed), 2, mtime=1))
    if name == "mnist":
        assert len(data.load(name).test) == 10_000
    else:
        told = refusal(name)
        assert idx.SOURCES[name].sha256["train-images-idx3-ubyte"] in told
        assert "delete or replace the file" in told
    assert tried == []


def test_files_of_mnist_are_not_taken_for_those_of_another(nowhere, monkeypatch):
    folder, tried = nowhere
    (folder / "data").mkdir()
    for file, packed in stand_in(monkeypatch, "mnist").items():
        (folder / "data" / f"{file}.gz").write_bytes(packed)
    assert data.load("mnist").test_labels[10] == 1
    assert tried == []
    for name in ("fashion_mnist", "kmnist"):
        assert str(folder / "data" / name) in refusal(name, error=FileNotFoundError)


@pytest.mark.parametrize("home", ["data/mnist", "data", "cache/nbvae/mnist"])
@pytest.mark.parametrize("fault", ["truncated", "altered", "damaged", "no gzip", "empty"])
def test_a_bad_file_is_refused_with_both_hashes_and_kept(nowhere, fault, home):
    folder, tried = nowhere
    content = bytes([0, 0, 8, 3]) + np.random.default_rng(0).bytes(200_000)
    packed = gzip.compress(content)
    damaged = bytearray(packed)
    damaged[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    file = {
        "truncated": packed[: len(packed) // 2],
        "altered": packed,
        "damaged": bytes(damaged),
        "no gzip": content,
        "empty": b"",
    }[fault]
    path = folder / home / "train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(file)
    message = refusal("mnist")
    assert str(path) in message
    assert "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db" in message
    if fault in ("altered", "no gzip", "empty"):
        assert hashlib.sha256(b"" if fault == "empty" else content).hexdigest() in message
    assert "delete or replace the file" in message
    assert path.read_bytes() == file
    assert tried == []


def test_a_truncated_gzip_is_hashed_as_far_as_it_goes():
    content = np.random.default_rng(0).bytes(300_000)
    packed = gzip.compress(content)
    assert idx._gunzip(packed) == content
    part = idx._gunzip(packed[: len(packed) // 2])
    assert 100_000 < len(part) < 200_000
    assert content.startswith(part)


# a reader's own file


def write(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_file_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(0, 256, (40, 5, 6), dtype=np.uint8)
    bytes_[0, 0, 0] = 255
    path = write(
        tmp_path / "mine.npz", train=bytes_, validation=bytes_[:7], test=bytes_[:9], test_labels=np.arange(9), note="x"
    )
    mine = data.load(str(path))
    assert (mine.name, mine.shape, mine.binarize) == ("mine.npz", (1, 5, 6), None)
    np.testing.assert_array_equal(mine.train[:, 0], (bytes_ / np.float32(255)).astype(np.float32))
    assert mine.train.max() == 1
    assert len(mine.validation) == 7
    assert mine.train_labels is mine.validation_labels is None
    assert mine.test_labels.tolist() == list(range(9))
    for how in ("threshold", "static", "dynamic"):
        assert data.load(path, binarize=how).is_binary


@pytest.mark.parametrize(("shape", "expected"), [((30, 4), (4,)), ((30, 4, 5), (1, 4, 5)), ((30, 3, 4, 5), (3, 4, 5))])
@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, bool])
def test_shapes_and_types(shape, expected, kind, tmp_path):
    x = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    mine = data.load(write(tmp_path / "mine.npz", train=x, validation=x, test=x))
    assert mine.shape == expected
    assert mine.train.dtype == torch.float32
    np.testing.assert_array_equal(mine.train.reshape(shape), x.astype(np.float32))


@pytest.mark.parametrize(("n", "held"), [(2, 1), (9, 1), (100, 10), (109, 10)])
def test_without_validation_a_tenth_of_train_is_held_out_with_its_labels(n, held, tmp_path):
    x = np.arange(n, dtype=np.float64)[:, None]
    path = write(tmp_path / "mine.npz", train=x, test=x, train_labels=np.arange(n) + 7)
    mine = data.load(path)
    assert len(mine.validation) == held
    assert sorted(torch.cat([mine.train, mine.validation]).flatten().tolist()) == list(range(n))
    assert torch.equal(mine.train_labels, mine.train[:, 0].long() + 7)
    assert torch.equal(mine.validation_labels, mine.validation[:, 0].long() + 7)
    assert mine.sha256 == data.load(path).sha256


X = np.zeros((6, 4))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"test": X, "other": X}, "has no array train; it has test, other"),
        ({"a": X}, "has no array train and no array test; it has a"),
        ({"train": X, "test": np.zeros((6, 5))}, "one shape in all splits, got train (4,), test (5,)"),
        ({"train": X, "test": X, "validation": X[:0]}, "validation is empty: its shape is (0, 4)"),
        ({"train": np.zeros((5, 0)), "test": np.zeros((5, 0))}, "train is empty: its shape is (5, 0)"),
        ({"train": X, "test": X + np.inf}, "test holds values that are not finite"),
        ({"train": X + np.nan, "test": X}, "train holds values that are not finite"),
        ({"train": X, "test": X + 1e300}, "test holds values that are not finite in float32"),
        ({"train": X, "test": X, "train_labels": np.arange(5)}, "train_labels must be 6 whole numbers, got int64"),
        ({"train": X, "test": X, "test_labels": X[:, 0]}, "test_labels must be 6 whole numbers, got float64"),
        ({"train": X, "test": X, "validation_labels": np.arange(6)}, "validation_labels needs an array validation"),
        ({"train": X.astype(str), "test": X}, "train must hold real numbers, got dtype <U32"),
        ({"train": X + 1j, "test": X}, "train must hold real numbers, got dtype complex128"),
        ({"train": X.astype(object), "test": X}, "it holds Python objects"),
        ({"train": X[0], "test": X[0]}, "train must be (N, n), (N, H, W) or (N, C, H, W), got (4,)"),
        ({"train": X[0, 0], "test": X}, "train must be (N, n), (N, H, W) or (N, C, H, W), got ()"),
        ({"train": np.zeros((9, 1, 2, 3, 4)), "test": X}, "(N, H, W) or (N, C, H, W), got (9, 1, 2, 3, 4)"),
        ({"train": X, "test": X.astype("S3")}, "test must hold real numbers, got dtype |S3"),
        ({"train": X, "test": X.astype("M8[s]")}, "test must hold real numbers, got dtype datetime64[s]"),
        ({"train": X, "test": X, "train_labels": X[:, :1].astype(int)}, "train_labels must be 6 whole numbers, got int64"),
        (
            {"train": X, "test": X, "train_labels": np.full(6, 2**63, np.uint64)},
            "train_labels must be 6 whole numbers, got uint",
        ),
        ({"train": X[:1], "test": X}, "train needs at least 2 examples"),
        ({"train": X.astype(np.uint8) + 1, "test": X.astype(np.uint8)}, "save 0/1 pixels as bool or float32"),
        ({"train": X.astype(np.uint8) + 16, "test": X.astype(np.uint8)}, "no value is above 16; save the values divided by"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(arrays, message, tmp_path):
    path = write(tmp_path / "bad.npz", **arrays)
    told = refusal(path)
    assert message in told
    assert str(path) in told


@pytest.mark.parametrize("name", ["val", "valid", "Train", "labels", "train_label", "y_train", "test_labels ", "arr_0"])
def test_misspelt_arrays_are_refused_and_notes_are_not(name, tmp_path):
    path = write(tmp_path / "mine.npz", train=X, test=X, **{name: np.arange(6)})
    told = refusal(path)
    assert f"unknown arrays: {name};" in told
    assert all(known in told for known in ("validation", "train_labels", "validation_labels", "test_labels"))
    path = write(tmp_path / "mine.npz", train=X, test=X, **{name: np.array("cut from two photographs")})
    assert len(data.load(path).test) == 6


def splits_of(kind, other=None, rows=40, shape=(8, 8)):
    """Two splits of bytes in the types given, a float scaled to [0, 1] for a type with a "/"."""
    bytes_ = np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)
    parts = []
    for part, each in ((bytes_, kind), (bytes_[:9], other or kind)):
        parts.append((part > 127) if each == "bool" else (part / 255 if "/" in each else part).astype(each.strip("/")))
    return {"train": parts[0], "test": parts[1]}


@pytest.mark.parametrize(
    ("one", "two"),
    [("u1", "f4"), ("u1", "/f4"), ("u1", "i8"), ("u1", "i2"), ("u1", "bool"), ("/f4", "f4"), ("/f4", "i8"), ("bool", "i8")],
)
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (64,)])
def test_splits_on_two_scales_are_refused(one, two, shape, tmp_path):
    for kinds in ((one, two), (two, one)):
        told = refusal(write(tmp_path / "mine.npz", **splits_of(*kinds, shape=shape)))
        assert any(word in told for word in ("uint8", "one scale", "divide by 255"))


def test_a_split_of_bytes_beside_one_of_0_and_1_is_refused(tmp_path):
    splits = splits_of("u1")
    splits["test"] = splits["test"] // 128
    assert "one scale, but their mean |value| is: train 0.498, test 0.00193" in refusal(write(tmp_path / "mine.npz", **splits))


@pytest.mark.parametrize(("one", "two"), [("/f4", "/f8"), ("/f2", "/f4"), ("bool", "bool"), ("bool", "/f4"), ("u1", "u1")])
def test_types_that_are_on_one_scale_may_differ(one, two, tmp_path):
    mine = data.load(write(tmp_path / "mine.npz", **splits_of(one, two)))
    assert mine.reach == pytest.approx(1, abs=1 / 255)
    assert mine.train.dtype == mine.test.dtype == torch.float32


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i8", "u2", "i2"])
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_images_of_levels_that_nobody_divided_are_refused_and_tables_are_not(kind, shape, tmp_path):
    told = refusal(write(tmp_path / "mine.npz", **splits_of(kind, shape=shape)))
    assert "whole numbers up to 255: divide by 255" in told
    splits = splits_of(kind, shape=shape)
    table = data.load(write(tmp_path / "table.npz", **{name: part.reshape(len(part), -1) for name, part in splits.items()}))
    assert table.reach == 255
    few = {name: part // 128 * 2 - 1.0 for name, part in splits.items()}  # −1 and 1, whole but no levels
    assert data.load(write(tmp_path / "signs.npz", **few)).reach == 1
    halves = {name: part / 2 for name, part in splits.items()}
    assert data.load(write(tmp_path / "halves.npz", **halves)).reach == 127.5


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (64, 64, 4), (5, 9, 3), (40, 8, 1)])
@pytest.mark.parametrize("kind", ["u1", "/f4", "bool"])
def test_images_with_their_channels_last_are_refused_with_the_transposition_to_make(shape, kind, tmp_path):
    splits = splits_of(kind, shape=shape, rows=12)
    told = refusal(write(tmp_path / "mine.npz", **splits))
    assert f"{(12, *shape)} looks like (N, H, W, C): make it x.transpose(0, 3, 1, 2)" in told
    mine = data.load(write(tmp_path / "mine.npz", **{name: x.transpose(0, 3, 1, 2) for name, x in splits.items()}))
    assert mine.shape == (shape[2], *shape[:2])
    x = torch.rand(12, *shape)
    with pytest.raises(ValueError, match=r"train must be .* make it x.permute\(0, 3, 1, 2\)"):
        data.Dataset("mine", x, x, x)
    assert data.Dataset("mine", *[x.permute(0, 3, 1, 2)] * 3).shape == mine.shape


@pytest.mark.parametrize("shape", [(3, 8, 3), (1, 9, 1), (4, 9, 4), (3, 1, 4), (16, 2, 2), (512, 1, 1), (64, 4, 4), (2, 9, 3)])
def test_narrow_images_and_feature_maps_with_their_channels_first_are_accepted(shape, tmp_path):
    mine = data.load(write(tmp_path / "mine.npz", **splits_of("/f4", shape=shape)))
    assert mine.shape == shape


def test_files_that_are_missing_or_damaged_are_refused_in_one_line(tmp_path):
    assert "no file" in refusal(str(tmp_path / "none.npz"), error=FileNotFoundError)
    assert "no file" in refusal("~nobody-of-this-name/none.npz", error=FileNotFoundError)
    good = write(tmp_path / "good.npz", train=np.random.default_rng(0).random((50, 40)), test=X)
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[5000] ^= 255
    # The entry of an archive's directory: its compression method, made one that does not exist.
    unknown = bytearray(content)
    unknown[content.index(b"PK\x01\x02") + 10] = 99
    # The header of the first array: 10 of its 50 rows, so that numpy reads less than the checksum is of.
    fewer = content.replace(b"(50, 40)", b"(10, 40)")
    assert fewer != content
    np.save(tmp_path / "array.npy", X)
    contents = [
        b"",
        b"PK",
        b"nothing of the kind",
        content[:3000],
        content[:-30],
        bytes(flipped),
        bytes(unknown),
        fewer,
        pickle.dumps({"train": X, "test": X}),
        (tmp_path / "array.npy").read_bytes(),
    ]
    for number, bad in enumerate(contents):
        path = tmp_path / f"bad{number}.npz"
        path.write_bytes(bad)
        assert "it is not an .npz, or damaged" in refusal(path)
        assert path.read_bytes() == bad
    assert "not an .npz" in refusal(tmp_path)


def test_binarising_needs_values_between_0_and_1(tmp_path):
    path = write(tmp_path / "wide.npz", train=X - 1.5, test=X + 3)
    assert refusal(path, binarize="static") == "binarize='static' needs values in [0, 1], but wide.npz has -1.5 to 3"


# names and options


def test_unknown_names_and_options_are_refused_in_one_line():
    known = "digits, patches, gaussian, mnist, fashion_mnist, kmnist, glyphs"
    assert refusal("mnits") == f"dataset must be one of {known}, or a path to an .npz; got 'mnits'"
    for name in (3, None, ["digits"]):
        assert refusal(name).endswith(f"got {name!r}")
    assert refusal("digits", seed=1) == "digits has no option 'seed'; it has binarize"
    assert refusal("gaussian", sead=1) == "gaussian has no option 'sead'; it has binarize, spectrum, sizes, seed"
    for name in ("fashion_mnist", "kmnist", "glyphs"):
        assert refusal(name, sizes=3) == f"{name} has no option 'sizes'; it has binarize"
    assert refusal("mine.npz", sizes=3) == "mine.npz has no option 'sizes'; it has binarize"
    allowed = "binarize must be one of default, None, threshold, static, dynamic; got "
    assert refusal("digits", binarize="statik") == allowed + "'statik'"
    assert refusal("digits", binarize=True) == allowed + "True"


def test_samples_that_float32_cannot_hold_are_refused():
    assert refusal("gaussian", spectrum=[1e300, 1.0], sizes=(9, 9, 9)) == "train holds values that are not finite in float32"


def test_a_data_set_of_ones_own_tensors_is_checked():
    x = torch.zeros(4, 3, dtype=torch.float64)
    assert data.Dataset("mine", x, x, x).is_binary
    with pytest.raises(ValueError, match="one shape in all splits"):
        data.Dataset("mine", x, x, x[:, :2])
    with pytest.raises(ValueError, match="test is empty"):
        data.Dataset("mine", x, x, x[:0])
    with pytest.raises(ValueError, match="binarize must be one of"):
        data.Dataset("mine", x, x, x, binarize="default")


def of_own(*arguments, **options) -> str:
    """The message of `Dataset`'s refusal, which is one line."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        data.Dataset(*arguments, **options)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return str(caught.value)


Y = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Y.numpy(), "got numpy.ndarray: torch.as_tensor makes one"),
        (Y.tolist(), "got list: torch.as_tensor makes one"),
        (None, "got NoneType"),
        (torch.utils.data.DataLoader(Y), "got torch.utils.data.dataloader.DataLoader"),
        ((255 * Y).to(torch.uint8), "got torch.uint8: bytes become one by x.float() / 255"),
        ((255 * Y).long(), "got torch.int64: x.float() makes one"),
        (Y > 0.5, "got torch.bool: x.float() makes one"),
        (Y.half(), "got torch.float16: x.float() makes one"),
        (Y.bfloat16(), "got torch.bfloat16: x.float() makes one"),
        (Y + 0j, "got torch.complex64: x.float() makes one of real numbers"),
        (Y.clone().requires_grad_(), "got torch.float32, with a gradient: x.detach()"),
        (torch.nn.Parameter(Y), "got torch.float32, with a gradient: x.detach()"),
        (Y.to("meta"), "got torch.float32, on meta: x.cpu()"),
        (Y.to_sparse(), "got torch.float32, torch.sparse_coo: x.to_dense()"),
        (Y[0], "must have the shape (N, n) or (N, C, H, W), N examples; got (5,)"),
        (Y[0, 0], "must have the shape (N, n) or (N, C, H, W), N examples; got ()"),
        (Y[:, :0], "is empty: its shape is (8, 0)"),
        (Y.where(Y.max() > Y, np.nan), "holds values that are not finite in float32"),
        (Y.where(Y.max() > Y, -np.inf), "holds values that are not finite in float32"),
        (Y.double(), "the splits must have one dtype, float32 or float64"),
    ],
)
def test_tensors_of_another_kind_are_refused_in_one_line(split, x, message):
    told = of_own("mine", **{name: x if name == split else Y for name in data.SPLITS})
    assert message in told
    assert told.startswith(split) or "splits" in message


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(7),
        torch.arange(8)[:, None],
        torch.arange(8.0),
        torch.arange(8, dtype=torch.int32),
        np.arange(8),
        [0] * 8,
        3,
    ],
)
def test_labels_of_another_kind_are_refused_in_one_line(split, labels):
    assert of_own("mine", Y, Y, Y, **{f"{split}_labels": labels}).startswith(
        f"{split}_labels must be an int64 tensor (8,) on the CPU, or None; got "
    )
    assert getattr(data.Dataset("mine", Y, Y, Y, **{f"{split}_labels": torch.arange(8)}), f"{split}_labels").sum() == 28


def test_a_forgotten_name_and_pixels_that_are_no_probabilities_are_refused_in_one_line():
    assert of_own(Y, Y, Y, Y) == "name must be a string, got torch.float32"
    for how in ("threshold", "static", "dynamic"):
        told = of_own("mine", Y, Y, 1.5 * Y / Y.max(), binarize=how)
        assert told.startswith(f"binarize={how!r} needs values in [0, 1], but mine has 0.")
        assert told.endswith(" to 1.5")


def test_reach_is_the_largest_size_of_a_training_value():
    x = torch.tensor([[-7.0, 2.0], [0.5, 3.0]])
    assert data.Dataset("mine", x, 2 * x, 3 * x).reach == 7
    assert data.Dataset("mine", -x.double(), x.double(), x.double()).reach == 7
    assert data.load("digits", binarize=None).reach == data.load("digits", binarize="dynamic").reach == 1


def test_splits_on_purpose_apart_can_be_made_of_tensors_and_not_be_read_from_a_file(tmp_path):
    assert data.Dataset("mine", Y, Y, 255 * Y).reach == Y.max()
    splits = {"train": Y.numpy(), "validation": Y.numpy(), "test": 255 * Y.numpy()}
    for names in itertools.permutations(splits):
        told = refusal(write(tmp_path / "mine.npz", **dict(zip(names, splits.values(), strict=True))))
        assert "all splits must be on one scale" in told
    black = splits | {"test": 0 * Y.numpy()}
    assert data.load(write(tmp_path / "mine.npz", **black)).test.max() == 0


def test_iid_splits_however_small_or_heavy_are_on_one_scale(tmp_path):
    rng = np.random.default_rng(0)
    for rows in (1, 2, 3, 9):
        for _ in range(20):
            x = rng.standard_normal((100 + rows, 2))
            for values in (x, np.exp(x), x > 1, 1000 * x):
                data.load(write(tmp_path / "mine.npz", train=values[:100], validation=values[100:], test=values[100:]))


def test_a_scale_that_networks_overflow_on_is_told():
    x = torch.linspace(-1, 1, 24).view(6, 4)
    for fine in (x, 30 * x):
        data.Dataset("fine", fine, fine, fine).check_scale()
    one_line(lambda: data.Dataset("wild", 1680 * x, x, x).check_scale(), "dataset wild reaches 1680: scale it to about 1")


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_a_scale_of_data_that_never_vary_is_refused(value):
    x = torch.full((20, 4), value)
    one_line(lambda: data.Dataset("flat", x, x, x).check_scale(), "dataset flat never varies: there is nothing to code")
    once = torch.cat([x, x.new_tensor([[value, value, value, value + 1]])])
    data.Dataset("once", once, x, x).check_scale()


# factors

LEVELS = {"weight": ("regular", "bold"), "size": ("small", "middle", "large")}
ROWS = torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0], [0, 1], [1, 2], [0, 0], [1, 1]])


def test_factors_are_rows_of_the_examples_and_count_in_the_hash():
    factors = data.Factors(LEVELS, ROWS, ROWS, ROWS)
    mine = data.Dataset("mine", Y, Y, Y, factors=factors)
    plain = data.Dataset("mine", Y, Y, Y)
    assert plain.factors is None
    assert mine.factors.by_name("test")["size"].tolist() == ROWS[:, 1].tolist()
    others = [
        data.Factors(LEVELS, ROWS, ROWS.flip(0), ROWS),
        data.Factors(dict(reversed(LEVELS.items())), *[ROWS.flip(1)] * 3),
        data.Factors(LEVELS | {"weight": ("light", "bold")}, ROWS, ROWS, ROWS),
    ]
    hashes = {data.Dataset("mine", Y, Y, Y, factors=each).sha256 for each in (factors, *others, None)}
    assert len(hashes) == 5
    assert data.Dataset("other", Y, Y, Y, factors=data.Factors(LEVELS, ROWS, ROWS, ROWS)).sha256 == mine.sha256


def test_levels_are_kept_as_they_were_given():
    levels = {"weight": ["regular", "bold"]}
    factors = data.Factors(levels, *[ROWS[:, :1]] * 3)
    levels["weight"].append("black")
    levels["slant"] = ["upright"]
    assert factors.levels == {"weight": ("regular", "bold")}


def test_the_first_training_examples_keep_their_labels_and_factors():
    whole = data.Dataset("mine", Y, Y, Y, torch.arange(8), factors=data.Factors(LEVELS, ROWS, ROWS, ROWS))
    some = whole.first(3)
    assert torch.equal(some.train, Y[:3])
    assert some.train_labels.tolist() == [0, 1, 2]
    assert torch.equal(some.factors.train, ROWS[:3])
    assert torch.equal(some.factors.test, ROWS)
    assert some.test_labels is None
    assert whole.first(8).sha256 == whole.sha256
    for bad, message in (
        (9, "n must be at most 8, the training examples of mine; got 9"),
        (0, "n must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            whole.first(bad)


@pytest.mark.parametrize(
    ("levels", "rows", "message"),
    [
        ({}, ROWS, "levels must name at least one factor, and for each the names of its values; got {}"),
        (("weight", "size"), ROWS, "levels must name at least one factor"),
        ({"weight": "regular", "size": ("small",)}, ROWS, "levels must name at least one factor"),
        ({"weight": (), "size": ("small",)}, ROWS, "levels must name at least one factor"),
        ({1: ("a", "b"), "size": ("small",)}, ROWS, "levels must name at least one factor"),
        ({"weight": (0, 1), "size": ("small",)}, ROWS, "levels must name at least one factor"),
        (LEVELS, ROWS[:, 0], "test of factors must be an int64 tensor (N, 2) on the CPU, got torch.int64 of shape (8,)"),
        (LEVELS, ROWS[:, :1], "test of factors must be an int64 tensor (N, 2) on the CPU, got torch.int64 of shape (8, 1)"),
        (LEVELS, ROWS.float(), "test of factors must be an int64 tensor (N, 2) on the CPU, got torch.float32"),
        (LEVELS, ROWS.to("meta"), "test of factors must be an int64 tensor (N, 2) on the CPU, got torch.int64, on meta"),
        (LEVELS, ROWS.tolist(), "test of factors must be an int64 tensor (N, 2) on the CPU, got list"),
        (LEVELS, None, "test of factors must be an int64 tensor (N, 2) on the CPU, got NoneType"),
        (LEVELS, ROWS + torch.tensor([0, 1]), "test of factors has values of size outside 0..2"),
        (LEVELS, ROWS - torch.tensor([1, 0]), "test of factors has values of weight outside 0..1"),
    ],
)
def test_factors_of_another_kind_are_refused_in_one_line(levels, rows, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        data.Factors(levels, ROWS, ROWS, rows)
    assert str(caught.value).startswith(message)


def test_factors_that_are_not_of_these_examples_are_refused_in_one_line():
    factors = data.Factors(LEVELS, ROWS, ROWS, ROWS[:7])
    told = "factors must have a row for each example, but test has 8 examples and 7 rows"
    assert of_own("mine", Y, Y, Y, factors=factors) == told
    assert of_own("mine", Y, Y, Y, factors=ROWS) == "factors must be data.Factors or None, got torch.int64"
    with pytest.raises(ValueError, match=r"^split must be one of train, validation, test; got 'valid'$"):
        factors.by_name("valid")
