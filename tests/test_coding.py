"""Lossless streams: images come back bit for bit, sizes are −ELBO, and what is not whole and its own is refused."""

import hashlib
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from errors import one_line
from scipy import stats

from nbvae import coding, data, estimators, models, objectives, training
from nbvae.coding import _bits, lossless
from nbvae.coding.__main__ import main

CONFIG = training.TrainConfig(30, 64, 4e-3, "one_cycle", device="cpu")


def every(ds):
    return torch.cat([ds.test, ds.validation, ds.train])


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def run(digits):
    with training.seeded(0):
        model = models.VAE(digits.shape, 8)
    return training.fit(model, digits, objectives.VAE(), CONFIG)


@pytest.fixture(scope="module")
def model(run):
    return run.model


def small(seed=0, **how):
    with training.seeded(seed):
        return models.VAE((1, 4, 4), 3, hidden=(8,), **how)


def binary(n, seed=0, shape=(1, 4, 4)):
    return (torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


# What is on the stack.


@pytest.mark.parametrize("log_cdf", [None, "logistic"])
def test_a_tree_of_digits_is_the_mass_of_the_intervals(log_cdf):
    """The product of the digits' probabilities against differences of scipy's distribution functions."""
    law = stats.logistic if log_cdf else stats.norm
    how = {"log_cdf": _bits.special.log_expit} if log_cdf else {}
    for location, scale, count in ((0.3, 0.4, 8), (1.4, 0.05, 11), (-0.2, 2.0, 16)):
        symbols = np.arange(count)
        full = np.full(count, location), np.full(count, scale)
        tree = _bits.Intervals(*full, origin=-0.1, step=0.2, count=count, **how)
        found = np.zeros(count)
        for level in range(tree.depth):
            left = tree.depth - level
            odds = tree.logits(level, symbols >> left)
            found += np.where((symbols >> (left - 1)) & 1, -np.logaddexp(0, -odds), -np.logaddexp(0, odds))
        edges = (np.concatenate([[-np.inf], -0.1 + 0.2 * np.arange(1, count), [np.inf]]) - location) / scale
        expected = np.where(edges[1:] > 0, law.sf(edges[:-1]) - law.sf(edges[1:]), law.cdf(edges[1:]) - law.cdf(edges[:-1]))
        likely = expected > 1e-12  # what is less likely has no exact difference
        np.testing.assert_allclose(found[likely], np.log(expected[likely]), rtol=1e-6, atol=1e-9)
        assert (found[~likely] < -25).all()


def test_symbols_cost_their_entropy_and_come_off_the_stack_as_they_went_on():
    generator = np.random.default_rng(0)
    tree = _bits.Intervals(np.full(20_000, 100.0), np.full(20_000, 20.0), -0.5, 1.0, 256)
    symbols = np.clip(np.rint(generator.normal(100, 20, 20_000)), 0, 255).astype(np.int64)
    stack = _bits.Stack()
    stack.push(symbols, tree)
    assert len(stack) * 32 == pytest.approx(20_000 * math.log2(20 * math.sqrt(2 * math.pi * math.e)), rel=0.005)
    assert (stack.pop(20_000, tree) == symbols).all()
    assert len(stack) == 0


def test_bits_that_were_never_pushed_are_symbols_of_the_law_that_they_are_popped_by():
    tree = _bits.Intervals(np.full(5000, 0.4), np.full(5000, 0.3), -16.0, 1 / 256, 8192)
    popped = _bits.Stack(lossless._initial(5000)).pop(5000, tree)
    z = (popped + 0.5) / 256 - 16
    assert stats.kstest(z, "norm", (0.4, 0.3)).pvalue > 0.001


# Round trips, and sizes.


def test_all_digits_come_back_bit_for_bit_at_the_price_of_the_elbo(model, digits):
    x = every(digits)
    done = []
    stream = coding.compress(model, x, done.append)
    assert sum(done) == len(x)
    again = coding.decompress(model, stream)
    assert again.dtype == x.dtype
    assert torch.equal(again, x)
    found, point = coding.report(stream), estimators.evaluate(model, x, n_samples=50)
    assert found.nats == pytest.approx(point.rate + point.distortion, rel=0.01)
    assert found.bits_per_dimension == pytest.approx(found.nats / 64 / math.log(2))
    assert found.header <= 96
    assert found.size == len(stream)
    assert found.initial <= 4 * (2 + 8 * 3 * 13 / 32)  # of one image's z
    test = coding.compress(model, digits.test)
    assert torch.equal(coding.decompress(model, test), digits.test)


GREY = [
    {"likelihood": "discretized_gaussian", "sigma": "z_diag", "levels": 17},
    {"likelihood": "discretized_logistic", "sigma": "global", "levels": 17},
    {"likelihood": "gaussian", "sigma": "global"},
]


@pytest.mark.parametrize("how", GREY, ids=lambda how: how["likelihood"])
def test_grey_digits_come_back_at_the_price_of_the_elbo(how):
    ds = data.load("digits", binarize=None)
    with training.seeded(0):
        model = models.VAE(ds.shape, 8, **how)
    training.fit(model, ds, objectives.VAE(), training.TrainConfig(15, 64, 2e-3, "one_cycle", device="cpu"))
    coder = models.Discretized(model, 17) if how["likelihood"] == "gaussian" else model
    stream = coding.compress(coder, every(ds))
    assert torch.equal(coding.decompress(coder, stream), every(ds))
    point = estimators.evaluate(coder, every(ds), n_samples=20)
    assert coding.report(stream).nats == pytest.approx(point.rate + point.distortion, rel=0.02)


def test_a_view_of_one_beta_and_a_linear_and_a_convolutional_network_code_too(digits):
    x = digits.test[:30]
    with training.seeded(0):
        many = models.MultiBetaVAE(digits.shape, 4, hidden=(8,))
        others = [models.VAE(digits.shape, 4, network=name) for name in ("linear", "conv")]
    stream = coding.compress(many.at(0.5), x)
    assert torch.equal(coding.decompress(many.at(0.5), stream), x)
    one_line(lambda: coding.decompress(many.at(0.6), stream), "another model")
    one_line(lambda: coding.compress(many, x), "many β")
    for other in others:
        assert torch.equal(coding.decompress(other, coding.compress(other, x)), x)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 130])
def test_any_number_of_images_of_any_content(n):
    """Also black ones, white ones and noise under a model that expects none of them."""
    for x in (torch.zeros(n, 1, 4, 4), torch.ones(n, 1, 4, 4), binary(n)):
        assert torch.equal(coding.decompress(small(), coding.compress(small(), x)), x)


def test_levels_far_from_what_the_decoder_expects_come_back():
    model = small(likelihood="discretized_gaussian", sigma=0.002, levels=256)
    x = torch.randint(256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float() / 255
    assert torch.equal(coding.decompress(model, coding.compress(model, x)), x)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, -30.0), (40.0, 0.0), (-1e6, -2.0), (3.0, 12.0)])
def test_codes_narrower_than_the_grid_or_beyond_it_cost_more_and_lose_nothing(mean, log_variance):
    model, x = small(), binary(30)
    posterior = models.vae.normal(torch.full((1, 3), mean).double(), torch.full((1, 3), math.exp(log_variance / 2)).double())
    type_ = type("Odd", (models.VAE,), {"posterior": lambda self, x: posterior.expand((len(x),))})
    model.__class__ = type_
    assert torch.equal(coding.decompress(model, coding.compress(model, x)), x)


def test_a_posterior_that_is_the_prior_gives_all_its_bits_back():
    """An encoder that says nothing: R = 0, and the stream costs D alone."""
    model = small()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    x = binary(2000)
    point = estimators.evaluate(model, x, n_samples=50)
    assert point.rate == pytest.approx(0, abs=1e-6)
    assert coding.report(coding.compress(model, x)).nats == pytest.approx(point.distortion, rel=0.005)


def test_the_model_is_left_as_it_was_and_so_is_torchs_stream(model, digits):
    model.train()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    coding.compress(model, digits.test[:5])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


def test_one_stream_whatever_the_process_its_threads_and_the_precision_of_the_copy(run, digits, tmp_path):
    """The same bytes from a process with two threads, which reads the run from disk, and from a model in float64."""
    folder, target = run.save(tmp_path / "run"), tmp_path / "out.nbv"
    np.savez(tmp_path / "in.npz", images=digits.test.numpy())
    script = (
        "import torch, sys; torch.set_num_threads(2); from nbvae.coding.__main__ import main; main(sys.argv[1:])",
        *("compress", str(folder), str(tmp_path / "in.npz"), str(target)),
    )
    found = subprocess.run([sys.executable, "-c", *script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert not found.stderr
    stream = coding.compress(run.model, digits.test)
    assert target.read_bytes() == stream
    assert f"397 images in {len(stream)} bytes" in found.stdout
    assert torch.equal(coding.decompress(training.load(folder).model.double(), stream), digits.test)


def test_sums_in_another_order_decode_the_same_and_networks_that_differ_by_more_are_found_out(model, digits, monkeypatch):
    """Layers whose outputs are off in the fifteenth digit, and in the fourth: no image that is wrong is returned."""
    stream, own = coding.compress(model, digits.test[:100]), torch.nn.Linear.forward
    for wrong, fits in ((1e-15, True), (1e-14, True), (1e-4, False), (1e-2, False)):
        noise = np.random.default_rng(0)

        def forward(self, x, wrong=wrong, noise=noise):
            y = own(self, x)
            return y * (1 + wrong * torch.from_numpy(noise.standard_normal(y.shape)))

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Linear, "forward", forward)
            if fits:
                assert torch.equal(coding.decompress(model, stream), digits.test[:100])
            else:
                one_line(lambda: coding.decompress(model, stream))


def test_working_memory_does_not_grow_with_the_images(monkeypatch):
    """No pass of a network, nor of the coder, is over more than a fixed number of images."""
    sizes = []
    for name in ("posterior", "likelihood"):
        own = getattr(models.VAE, name)
        monkeypatch.setattr(models.VAE, name, lambda self, x, own=own: (sizes.append(len(x)), own(self, x))[1])
    x = binary(1500)
    assert torch.equal(coding.decompress(small(), coding.compress(small(), x)), x)
    assert max(sizes) == lossless._IMAGES


# Refusals.


def test_another_models_stream_and_images_that_a_model_cannot_have(digits):
    stream = coding.compress(small(), binary(10))
    one_line(lambda: coding.decompress(small(1), stream), "another model")
    one_line(lambda: coding.decompress(small(likelihood="discretized_gaussian", levels=2), stream), "another model")
    one_line(lambda: coding.compress(small(), torch.rand(3, 1, 4, 4)), "0 or 1")
    one_line(lambda: coding.compress(small(), torch.full((3, 1, 4, 4), torch.nan)), "0 or 1")
    one_line(lambda: coding.compress(small(), binary(3, shape=(1, 8, 8))), "(n, 1, 4, 4)")
    one_line(lambda: coding.compress(small(), binary(3)[0]), "(n, 1, 4, 4)")
    one_line(lambda: coding.compress(small(), torch.zeros(0, 1, 4, 4)), "n >= 1")
    one_line(lambda: coding.compress(small(), [1, 2]), "images must be")
    one_line(lambda: coding.compress(small(likelihood="gaussian"), binary(3)), "models.Discretized")
    one_line(lambda: coding.compress(small(likelihood="continuous_bernoulli"), binary(3)), "probability mass")
    one_line(lambda: coding.compress(3, binary(3)), "a model must have")
    sixteenths = small(likelihood="discretized_gaussian", sigma=0.1, levels=17)
    one_line(lambda: coding.compress(sixteenths, torch.full((1, 1, 4, 4), 0.3)), "j/16")
    nearly = torch.full((1, 1, 4, 4), 1 / 3)
    levels4 = small(likelihood="discretized_gaussian", sigma=0.1, levels=4)
    one_line(lambda: coding.compress(levels4, nearly + 1e-4), "as float32 has them")
    diverged = small()
    with torch.no_grad():
        next(diverged.decoder.parameters()).fill_(torch.nan)
    one_line(lambda: coding.compress(diverged, binary(3)), "diverged")


@pytest.mark.parametrize("wrong", [b"", b"NBV", b"NBVA", b"PK\x03\x04" + b"0" * 100, "text", None, b"NBVA\x02" + b"0" * 90])
def test_what_is_no_stream_is_refused(wrong):
    one_line(lambda: coding.decompress(small(), wrong))
    one_line(lambda: coding.report(wrong))


def damaged(stream, generator):
    """A stream with bits turned, bytes lost, added, moved or made anew."""
    content = bytearray(stream)
    kind, at = generator.integers(6), int(generator.integers(len(content)))
    n = int(generator.integers(1, 9))
    if kind == 0:
        content[at] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        content[at : at + n] = generator.bytes(n)
    elif kind == 2:
        del content[at : at + n]
    elif kind == 3:
        content[at:at] = generator.bytes(n)
    elif kind == 4:
        del content[at:]
    else:
        content += generator.bytes(n)
    return bytes(content)


@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "with a checksum that fits"])
def test_a_damaged_stream_is_refused_or_decoded_exactly(sealed):
    """Where someone makes the stream's own checksum fit again, the images' finds out."""
    model, x, generator = small(), binary(40), np.random.default_rng(0)
    stream = coding.compress(model, x)
    header = coding.report(stream).header
    refused, forged = [], [stream[:10] + struct.pack("<I", count) + stream[14:] for count in (0, 39, 41, 2**32 - 1)]
    for wrong in [*forged, *(damaged(stream, generator) for _ in range(500))]:
        if sealed and len(wrong) > header:
            head, content = wrong[: header - 8], wrong[header:]
            wrong = head + hashlib.sha256(head + content).digest()[:8] + content
        try:
            found = coding.decompress(model, wrong)
        except ValueError as error:
            refused.append(str(error))
            continue
        assert torch.equal(found, x)
    assert len(refused) > 400
    assert all(len(said.splitlines()) == 1 for said in refused)


# The command.


def test_the_command_brings_images_there_and_back(run, digits, tmp_path, capsys):
    folder = run.save(tmp_path / "run")
    there, back = tmp_path / "there.nbv", tmp_path / "back.npz"
    np.savez(tmp_path / "in.npz", other=np.zeros(3), images=digits.test[:20].numpy().astype(np.uint8))
    main(["compress", str(folder), str(tmp_path / "in.npz"), str(there)])
    main(["decompress", str(folder), str(there), str(back)])
    assert "20 images" in capsys.readouterr().out
    with np.load(back) as found:
        assert (found["images"] == digits.test[:20].numpy()).all()
    assert not list(tmp_path.glob("*.part"))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "no.npz").write_bytes(b"nothing")
    np.save(tmp_path / "one.npy", np.zeros((3, 1, 8, 8)))
    for arguments, said in (
        (["compress", str(tmp_path), "in.npz", "out"], "run.json is missing"),
        (["compress", str(folder), str(tmp_path / "none.npz"), "out"], "No such file"),
        (["compress", str(folder), str(tmp_path / "two.npz"), "out"], "--array"),
        (["compress", str(folder), str(tmp_path / "no.npz"), "out"], "is no .npz"),
        (["compress", str(folder), str(tmp_path / "one.npy"), "out"], "is no .npz"),
        (["compress", str(folder), str(tmp_path / "in.npz"), "out", "--beta", "1"], "many β"),
        (["compress", str(folder), str(tmp_path / "in.npz"), "out", "--levels", "9"], "gaussian"),
        (["decompress", str(folder), str(tmp_path / "in.npz"), "out"], "no stream"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 1
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
