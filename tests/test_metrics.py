"""Distances between sets of samples against closed forms and brute force; alignment of latents on known transformations."""

import math
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch
from errors import one_line
from scipy import stats

from nbvae import data, metrics
from nbvae.metrics import distances, features

RNG = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def with_moments(n, mean, cov):
    """Samples whose mean and covariance (n − 1) are exactly these."""
    x = normal(n, len(mean))
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T).reshape(len(mean), -1)), x.T, upper=False).T
    return x @ torch.linalg.cholesky(cov).T + mean


def covariance(d):
    root = normal(d, d + 2)
    return root @ root.T / d


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    """For diagonal covariances ‖μ − ν‖² + Σ(σ − τ)²."""
    sigma, tau = (
        torch.tensor([0.5, 1.0, 2.0, 1e-4], dtype=torch.float64),
        torch.tensor([1.5, 0.2, 2.0, 3.0], dtype=torch.float64),
    )
    mean, other = normal(4), normal(4)
    exact = (mean - other).square().sum() + (sigma - tau).square().sum()
    a, b = with_moments(300, mean, torch.diag(sigma**2)), with_moments(200, other, torch.diag(tau**2))
    assert metrics.frechet_distance(a, b).value == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_frechet_distance_agrees_with_scipys_matrix_square_root(d):
    mean, other, cov, second = normal(d), normal(d), covariance(d), covariance(d)
    root = scipy.linalg.sqrtm((cov @ second).numpy()).real
    exact = (mean - other).square().sum() + (cov + second).trace() - 2 * np.trace(root)
    a, b = with_moments(400, mean, cov), with_moments(500, other, second)
    assert metrics.frechet_distance(a, b).value == pytest.approx(exact.item(), abs=1e-6)


def test_frechet_distance_does_not_depend_on_the_origin_and_is_zero_for_a_set_with_itself():
    a, b = normal(200, 5), 2 * normal(150, 5)
    far = metrics.frechet_distance(a + 1e4, b + 1e4).value
    assert far == pytest.approx(metrics.frechet_distance(a, b).value, abs=1e-6)
    flat = torch.cat([a, a[:, :2]], 1)  # a singular covariance
    for x in (a, flat, 100 * a, a.float()):
        assert metrics.frechet_distance(x, x).value == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_biased_upwards_by_about_one_over_n():
    """Two samples of one Gaussian: the excess halves as n doubles, and n is reported."""
    means = []
    for n in (100, 200, 400):
        values = [metrics.frechet_distance(normal(n, 6), normal(n, 6)) for _ in range(200)]
        assert {each.n for each in values} == {n}
        means.append(np.mean([each.value for each in values]))
    assert means[0] / means[1] == pytest.approx(2, rel=0.15)
    assert means[1] / means[2] == pytest.approx(2, rel=0.15)


def test_the_bootstrap_interval_covers_repeated_draws():
    """95 % of intervals hold the mean of the estimator over many draws of n: at least 86 % of 200 is beyond chance's reach."""
    b = 0.5 + 1.3 * normal(4000, 3)
    draws = [normal(300, 3) for _ in range(200)]
    intervals = [metrics.frechet_distance(a, b, n_bootstrap=100, seed=i) for i, a in enumerate(draws)]
    mean = np.mean([each.value for each in intervals])
    assert np.mean([each.low <= mean <= each.high for each in intervals]) > 0.86
    assert all(each.low < each.value < each.high for each in intervals)
    width = np.mean([each.high - each.low for each in intervals])
    assert width == pytest.approx(4 * np.std([each.value for each in intervals]), rel=0.25)


def brute_kernel_distance(a, b):
    k = [[(x @ y / a.shape[1] + 1) ** 3 for y in torch.cat([a, b])] for x in torch.cat([a, b])]
    k = torch.tensor(k, dtype=torch.float64)
    n, m = len(a), len(b)
    off = k.clone().fill_diagonal_(0)
    return (off[:n, :n].sum() / (n * (n - 1)) + off[n:, n:].sum() / (m * (m - 1)) - 2 * k[:n, n:].mean()).item()


def test_no_distance_and_no_interval_is_below_zero():
    x = normal(50, 3)
    found = metrics.frechet_distance(x, x + 0.01, n_bootstrap=40)
    assert 0 <= found.low <= found.value


def test_kernel_distance_is_the_u_statistic(monkeypatch):
    a, b = normal(13, 3), 1 + normal(9, 3)
    exact = brute_kernel_distance(a, b)
    assert metrics.kernel_distance(a, b).value == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(distances, "_BLOCK", 20)
    assert metrics.kernel_distance(a, b).value == pytest.approx(exact, rel=1e-12)


def test_kernel_distance_is_unbiased():
    """Mean zero over 400 draws from one distribution, within 3.5 standard errors; the V-statistic's is far off."""
    values = np.array([metrics.kernel_distance(normal(40, 4), normal(60, 4)).value for _ in range(400)])
    assert abs(values.mean()) < 3.5 * values.std(ddof=1) / 20
    assert (values < 0).any()
    a, b = normal(40, 4), normal(60, 4)
    apart = metrics.kernel_distance(a, b + 1, n_bootstrap=50)
    assert apart.low < apart.value < apart.high
    assert apart.low > 0


def test_kernel_bootstrap_intervals_are_as_wide_as_repeated_draws():
    b = 0.3 + normal(1000, 2)
    every = [metrics.kernel_distance(normal(100, 2), b, n_bootstrap=60, seed=i) for i in range(60)]
    width = np.mean([each.high - each.low for each in every])
    assert width == pytest.approx(3.92 * np.std([each.value for each in every]), rel=0.35)


def brute_coverage(real, fake, k):
    def radii(points):
        return [sorted((p - q).norm().item() for q in points)[k] for p in points]

    r, f = radii(real), radii(fake)
    inside = [[(p - q).norm().item() <= s for q, s in zip(real, r, strict=True)] for p in fake]
    return (
        np.mean([any(row) for row in inside]),
        np.mean([any((p - q).norm().item() <= s for q, s in zip(fake, f, strict=True)) for p in real]),
        np.mean([sum(row) / k for row in inside]),
        np.mean([min((p - q).norm().item() for q in fake) <= s for p, s in zip(real, r, strict=True)]),
    )


def test_coverage_is_what_its_definitions_say(monkeypatch):
    real, fake = normal(40, 2), 0.7 + 0.6 * normal(30, 2)
    expected = brute_coverage(real, fake, 3)
    for block in (1 << 22, 50):
        monkeypatch.setattr(distances, "_BLOCK", block)
        found = metrics.coverage(real, fake, k=3)
        assert [each.value for each in found] == pytest.approx(expected, rel=1e-14)  # counts, over counts: not rounded
    assert {each.n for each in found} == {30}


def test_coverage_tells_fidelity_from_diversity():
    real = normal(500, 2)
    one_mode = metrics.coverage(real, 0.1 * normal(500, 2), n_bootstrap=50)
    assert one_mode.precision.value > 0.99
    assert one_mode.recall.value < 0.2
    assert one_mode.coverage.value < 0.3
    assert one_mode.recall.low <= one_mode.recall.value <= one_mode.recall.high
    outside = metrics.coverage(real, normal(500, 2) + 20)
    assert [each.value for each in outside] == [0, 0, 0, 0]
    same = metrics.coverage(real, normal(500, 2))
    assert same.density.value == pytest.approx(1, abs=0.15)  # its expectation for one distribution
    # Coverage's expectation for one distribution and n = m: 1 − Π of k ratios, near 1 − 2^−k (Naeem et al. 2020, eq. 11).
    n, k = 500, 5
    exact = 1 - np.prod([(n - i) / (2 * n - 1 - i) for i in range(k)])
    assert same.coverage.value == pytest.approx(exact, abs=0.03)


def test_intervals_of_the_shares_count_the_noise_of_both_sets():
    """Over 50 draws of both sets. Resampling one of the two alone covers the mean three times in four."""
    generator = torch.Generator().manual_seed(5)
    sets = [[torch.randn(200, 6, generator=generator) + shift for shift in (0, 0.5)] for _ in range(50)]
    found = [metrics.coverage(*pair, n_bootstrap=80, seed=i) for i, pair in enumerate(sets)]
    for each in zip(*found, strict=True):
        mean = np.mean([one.value for one in each])
        assert np.mean([one.low <= mean <= one.high for one in each]) >= 0.87
        spread = np.std([one.value for one in each], ddof=1)
        assert np.mean([one.high - one.low for one in each]) / (2 * spread) == pytest.approx(1.96, rel=0.3)
    one = found[0].precision
    assert one.low < one.value < one.high
    full = metrics.coverage(sets[0][0], sets[0][0], n_bootstrap=10)
    assert (full.recall.value, full.recall.high) == (1, 1)  # no share is above 1


def test_alignment_of_known_transformations():
    x = normal(4000, 4) * torch.tensor([1.0, 0.9, 0.7, 0.5], dtype=torch.float64)
    permuted = (x * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))[:, [2, 0, 3, 1]]
    unit = normal(4000, 4)
    rotation = torch.from_numpy(stats.ortho_group.rvs(4, random_state=1))
    for a, b, by_channel, matched, cca, cka in (
        (x, x, 1, 1, 1, 1),
        (x, 3 * x - 5, 1, 1, 1, 1),
        (x, permuted, 0, 1, 1, 1),
        (unit, 2 * unit @ rotation, None, None, 1, 1),
        (x, x @ covariance(4), None, None, 1, None),
        (unit, normal(4000, 4), 0, 0, 0, 0),
    ):
        found = metrics.alignment(a, b)
        for value, expected in zip(found[:4], (by_channel, matched, cca, cka), strict=True):
            if expected is None:
                assert value < 0.95
            else:
                assert value == pytest.approx(expected, abs=1e-6 if expected else 0.06)
        assert found.matched >= found.by_channel - 1e-12
    found = metrics.alignment(x, permuted)
    assert found.partner.tolist() == [1, 3, 0, 2]
    noisy = metrics.alignment(x, x + normal(4000, 4))
    assert noisy.channels.mean().item() == pytest.approx(noisy.by_channel, rel=1e-14)


def test_alignment_masks_inactive_latents():
    x = normal(1000, 4)
    quiet = torch.tensor([1.0, 1.0, 1e-3, 1e-3], dtype=torch.float64)
    found = metrics.alignment(x * quiet, x)
    assert found.active == 2
    assert found.by_channel == pytest.approx(1)
    assert found.matched == pytest.approx(1)
    assert found.cca == pytest.approx(1)
    assert found.channels.isnan().tolist() == [False, False, True, True]
    assert found.partner.tolist() == [0, 1, -1, -1]
    # Active here and there, but never in one place: no agreement by channel.
    apart = metrics.alignment(x * quiet, (x * quiet).flip(1))
    assert (apart.active, apart.by_channel) == (2, 0)
    assert apart.matched == pytest.approx(1)
    none = metrics.alignment(1e-3 * x, x)
    assert none.active == 0
    assert all(math.isnan(value) for value in none[:4])


def test_bad_input_is_answered_in_one_line():
    a = normal(10, 12)
    one_line(lambda: metrics.frechet_distance(a, a), "10 samples of 12 features", "at least 13")
    one_line(lambda: metrics.frechet_distance(normal(20, 3), normal(20, 4)), "(20, 3)", "(20, 4)")
    one_line(lambda: metrics.kernel_distance(normal(20, 3), normal(20)), "(20,)")
    one_line(lambda: metrics.kernel_distance(normal(1, 3), normal(20, 3)), "at least two samples")
    one_line(lambda: metrics.frechet_distance(normal(20, 3) / 0, normal(20, 3)), "finite")
    one_line(lambda: metrics.frechet_distance(normal(20, 3), normal(20, 3), n_bootstrap=-1), "n_bootstrap")
    one_line(lambda: metrics.coverage(normal(5, 2), normal(9, 2)), "at least 6 samples")
    one_line(lambda: metrics.coverage(normal(11, 2), normal(15, 2), n_bootstrap=9), "interval", "at least 12 samples")
    one_line(lambda: metrics.kernel_distance(normal(9, 0), normal(9, 0)), "(9, 0)")
    one_line(lambda: metrics.kernel_distance([[1.0]], [[2.0]]), "list")
    for distance in (metrics.frechet_distance, metrics.kernel_distance, metrics.coverage):
        x = normal(20, 2)
        one_line(lambda: distance(x, x, n_bootstrap=1), "n_bootstrap", "at least 2")  # noqa: B023
        for seed in (1.5, -1, 2**64):
            one_line(lambda: distance(x, x, n_bootstrap=2, seed=seed), "seed must be", str(seed))  # noqa: B023
        assert str(distance(x.numpy(), x.numpy())) == str(distance(x, x))  # arrays serve as well
    one_line(lambda: metrics.coverage(normal(9, 2), normal(9, 2), k=0), "k must be")
    one_line(lambda: metrics.alignment(normal(9, 2), normal(9, 3)), "(9, 3)")
    one_line(lambda: metrics.alignment(normal(4, 3), normal(4, 3)), "at least 5")
    one_line(lambda: metrics.alignment(normal(9, 2), normal(9, 2), threshold=-1.0), "threshold")
    zero, one = torch.zeros(2), torch.eye(2)
    assert metrics.frechet_gaussians(zero, one, zero + 3, 4 * one) == pytest.approx(2 * 9 + 2)
    one_line(lambda: metrics.frechet_gaussians(zero[:1], one, zero, one), "(1,), (2, 2)")
    one_line(lambda: metrics.frechet_gaussians(zero, torch.tensor([[1.0, 5], [0, 1]]), zero, one), "symmetric")
    one_line(lambda: metrics.frechet_gaussians(zero / 0, one, zero, one), "finite")
    one_line(lambda: metrics.frechet_gaussians([0.0, 0.0], one, zero, one), "list")
    assert metrics.frechet_gaussians(*(each.numpy() for each in (zero, one, zero + 3, 4 * one))) == pytest.approx(20)
    one_line(lambda: metrics.frechet_gaussians(zero, one / 0, zero, one), "finite")
    one_line(lambda: metrics.frechet_gaussians(zero, -one, zero, one), "-1")
    spoilt = normal(9, 2)
    spoilt[3, 1] = math.nan
    one_line(lambda: metrics.alignment(normal(9, 2), spoilt), "finite")
    one_line(lambda: metrics.alignment(spoilt, normal(9, 2)), "finite")


def test_classifier_is_cached_with_its_accuracy(monkeypatch, tmp_path):
    monkeypatch.setattr(features.pooch, "os_cache", lambda _: tmp_path)
    digits = data.load("digits")
    first = metrics.classifier(digits)
    assert first.accuracy > 0.9
    assert len(list((tmp_path / "classifiers").iterdir())) == 1
    monkeypatch.setattr(features, "_train", None)  # from now on only the cache can answer
    again = metrics.classifier(digits)
    assert again.accuracy == first.accuracy
    assert torch.equal(first(digits.test), again(digits.test))
    assert first(digits.test).shape == (397, first.dim)
    # The stored layers are the network: its own accuracy follows from the features and the last layer.
    weight, bias = first.layers[-1]
    labels = (first(digits.test) @ weight + bias).argmax(1)
    assert (labels == digits.test_labels).double().mean().item() == pytest.approx(first.accuracy)


def test_classifier_trains_again_where_the_cache_is_spoilt_or_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(features.pooch, "os_cache", lambda _: tmp_path)
    digits = data.load("digits")
    metrics.classifier(digits, hidden=[8], epochs=1)
    (file,) = (tmp_path / "classifiers").iterdir()
    file.write_bytes(b"PK no archive")
    spoilt = metrics.classifier(digits, hidden=[8], epochs=1)
    assert spoilt.dim == 8
    np.savez(file, accuracy=1.0)  # no layers
    assert metrics.classifier(digits, hidden=[8], epochs=1).accuracy == spoilt.accuracy
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setattr(features.pooch, "os_cache", lambda _: blocked)
    assert metrics.classifier(digits, hidden=[8], epochs=1).accuracy == spoilt.accuracy


def test_extractors_refuse_what_they_cannot_use(monkeypatch, tmp_path):
    monkeypatch.setattr(features.pooch, "os_cache", lambda _: tmp_path)
    one_line(lambda: metrics.classifier(data.load("gaussian", sizes=(20, 5, 5))), "no labels")
    one_line(lambda: metrics.classifier(data.load("digits"), hidden=[]), "hidden")
    one_line(lambda: metrics.classifier("digits"), "data.Dataset", "'digits'")
    x = torch.rand(30, 1, 4, 4)
    same = data.Dataset("same", x, x, x, *[torch.zeros(30, dtype=torch.int64)] * 3)
    one_line(lambda: metrics.classifier(same), "one label")
    digits = metrics.classifier(data.load("digits"), hidden=[8], epochs=1)
    one_line(lambda: digits(x), "(n, 1, 8, 8)", "(30, 1, 4, 4)")


def test_inception_without_its_extra_names_it_and_the_default(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    one_line(metrics.inception, "nbvae[inception]", "metrics.classifier", error=RuntimeError)


def test_inception_sees_bytes_on_one_scale(monkeypatch):
    """A dark image stays dark beside a bright one; grey becomes three equal channels."""
    seen = []

    class Network(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])

        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 2048)

    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", types.SimpleNamespace(NoTrainInceptionV3=Network))
    monkeypatch.setattr(features, "_BATCH", 2)
    extract = metrics.inception()
    images = torch.stack([torch.full((1, 8, 8), value) for value in (0.1, 1.0, 1.7)])
    assert extract(images).shape == (3, 2048)
    x = torch.cat(seen)
    assert x.dtype == torch.uint8
    assert x.shape == (3, 3, 8, 8)
    assert x.flatten(1).unique(dim=1).flatten().tolist() == [26, 255, 255]
    one_line(lambda: extract(torch.zeros(3, 64)), "(3, 64)")
