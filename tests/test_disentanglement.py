"""Scores of disentanglement on codes of which the truth is known: the factors themselves, rotations of them, noise."""

import itertools
import math

import numpy as np
import pytest
from errors import one_line
from scipy import integrate, linalg, stats

from nbvae import metrics
from nbvae.metrics import _disentanglement

RNG = np.random.default_rng(0)
LEVELS = (2, 2, 3)
EVERY = np.array(list(itertools.product(*map(range, LEVELS))))  # independent of each other, exactly
FACTORS = EVERY[RNG.permutation(np.repeat(np.arange(len(EVERY)), 250))]
N = len(FACTORS)


def noise(k: int) -> np.ndarray:
    return RNG.standard_normal((N, k))


def test_a_code_that_is_the_factors_has_the_highest_scores():
    codes = np.concatenate([noise(2), FACTORS + 0.05 * noise(3)], axis=1)
    gap, found = metrics.information_gap(codes, FACTORS), metrics.importances(codes, FACTORS)
    assert metrics.information_gap(FACTORS, FACTORS).value == pytest.approx(1, abs=1e-12)
    # Above 1 less what the best of the other latents seems to know by chance. Of the three values one bin of 20 has two.
    assert 0.96 < gap.value <= 1
    assert gap.information[2:].argmax(0).tolist() == [0, 1, 2]
    assert found.disentanglement == pytest.approx(1, abs=1e-3)
    assert found.informativeness == 1
    np.testing.assert_allclose(found.importance[2:], np.eye(3), atol=1e-3)


def test_a_rotated_code_has_scores_near_zero_though_it_tells_as_much():
    """Each of four latents is all four factors, with the signs of a Hadamard matrix."""
    factors = np.array(list(itertools.product((0, 1), repeat=4)))[RNG.integers(16, size=4000)]
    codes = (2 * factors - 1) @ linalg.hadamard(4) / 2 + 0.1 * RNG.standard_normal((4000, 4))
    assert metrics.information_gap(codes, factors).value < 0.02
    found = metrics.importances(codes, factors)
    assert found.disentanglement < 0.02
    assert found.informativeness > 0.99
    one = metrics.importances(codes, np.column_stack([factors[:, 0], RNG.integers(2, size=4000)]))
    assert one.saved[0] > 0.99  # of the others nothing can be told
    assert abs(one.saved[1]) < 0.1
    assert one.informativeness == pytest.approx(one.saved.mean())


def test_noise_has_scores_near_zero():
    gap, found = metrics.information_gap(noise(6), FACTORS), metrics.importances(noise(6), FACTORS)
    assert gap.value < 0.01
    assert found.disentanglement < 0.02
    assert found.informativeness < 0.05


def test_scores_are_the_same_whatever_the_order_sign_and_scale_of_the_latents():
    codes = np.concatenate([FACTORS @ np.array([[1.0, 0.4], [-0.5, 1.0], [0.2, 0.7]]), noise(2)], axis=1) + 0.5 * noise(4)
    others = (codes[:, [2, 0, 3, 1]], -codes, np.exp(codes), codes * [1, -10, 0.1, 3] + 7)
    gap, found = metrics.information_gap(codes, FACTORS), metrics.importances(codes, FACTORS)
    assert 0.02 < gap.value < 0.9
    for other in others:
        assert metrics.information_gap(other, FACTORS).gaps == pytest.approx(gap.gaps, abs=1e-12)
        each = metrics.importances(other, FACTORS)
        assert each.disentanglement == pytest.approx(found.disentanglement, abs=0.02)
        assert each.informativeness == pytest.approx(found.informativeness, abs=0.02)
    order = RNG.permutation(3)  # of the factors
    assert metrics.information_gap(codes, FACTORS[:, order]).gaps == pytest.approx(gap.gaps[order], abs=1e-12)


def test_information_has_no_bias_where_there_is_none_and_counting_alone_has_the_known_one():
    """Of latents that are independent of the factors: zero on average; counted, (bins − 1)(values − 1)/2N."""
    n, bins, factors = 400, 20, FACTORS[:400]
    found = np.array([metrics.information_gap(RNG.standard_normal((n, 2)), factors, bins).information for _ in range(300)])
    for j, each in enumerate(found.transpose(2, 0, 1).reshape(3, -1)):
        bias = (bins - 1) * (LEVELS[j] - 1) / (2 * n)
        assert abs(each.mean()) < 4 * each.std() / len(each) ** 0.5 + 0.05 * bias  # the correction is of first order
        spread = math.sqrt((bins - 1) * (LEVELS[j] - 1) / 2) / n  # that of a χ² over 2N
        assert each.std() == pytest.approx(spread, rel=0.1)


def test_information_is_that_of_two_gaussians_less_what_bins_lose():
    apart = 1.0

    def integrand(z):
        here, there = stats.norm.pdf(z - apart), stats.norm.pdf(z + apart)
        return here * np.log(2 * here / (here + there))

    truth = integrate.quad(integrand, -8, 9)[0]
    label = RNG.integers(2, size=(60_000, 1))
    codes = np.concatenate([apart * (2 * label - 1), 0 * label], 1) + RNG.standard_normal((60_000, 2))
    fine, coarse = (metrics.information_gap(codes, label, bins).information[0, 0] for bins in (40, 2))
    assert fine == pytest.approx(truth, abs=0.006)
    right = stats.norm.cdf(apart)  # two bins: a channel that errs with this probability
    assert coarse == pytest.approx(math.log(2) + right * math.log(right) + (1 - right) * math.log(1 - right), abs=0.006)
    assert coarse < fine


def test_factors_that_depend_on_each_other_leave_no_code_with_a_gap_of_one():
    """Two that exclude each other: the latent that is one of them knows what the other is not."""
    family = np.repeat([0, 1, 2], 1000)
    factors = np.column_stack([family == 1, family == 2]).astype(int)
    of_one = math.log(3) - 2 / 3 * math.log(2)
    shared = 2 * of_one - math.log(3)
    found = metrics.information_gap(factors, factors).gaps
    assert found == pytest.approx([1 - shared / of_one] * 2, abs=2e-3)
    assert metrics.information_gap(np.column_stack([family, RNG.permutation(family)]), family[:, None]).value > 0.99


@pytest.mark.parametrize(
    ("importance", "truth"),
    [
        (np.eye(3), 1.0),
        (np.eye(3)[:, [2, 0, 1]] * 5, 1.0),
        (np.full((4, 3), 0.25), 0.0),
        ([[1.0, 1.0], [0.0, 0.0]], 0.0),
        ([[3.0, 0.0], [0.5, 0.5]], 0.75),  # weighted by the sums of the rows
        ([[0.9, 0.1], [0.1, 0.9]], 1 + (0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)),
        (np.zeros((2, 2)), 0.0),
    ],
)
def test_disentanglement_of_importances_by_hand(importance, truth):
    assert _disentanglement._one_factor_each(np.array(importance)) == pytest.approx(truth, abs=1e-12)


def test_bad_input_is_answered_in_one_line():
    codes = noise(3)
    for score in (metrics.information_gap, metrics.importances):
        one_line(lambda: score(codes, FACTORS[:-1]), f"({N}, any)", f"({N - 1}, 3)")  # noqa: B023
        one_line(lambda: score(codes, FACTORS + 0.5), "whole numbers")  # noqa: B023
        one_line(lambda: score(codes, FACTORS - 1), "whole numbers from 0")  # noqa: B023
        one_line(lambda: score(codes, 0 * FACTORS + 4), "factor 0 has the value 4")  # noqa: B023
        one_line(lambda: score(codes * math.nan, FACTORS), "codes must be finite")  # noqa: B023
        one_line(lambda: score(codes[:, 0], FACTORS), "codes must have the shape")  # noqa: B023
    one_line(lambda: metrics.information_gap(codes[:, :1], FACTORS), "the codes have one")
    one_line(lambda: metrics.information_gap(codes[:99], FACTORS[:99]), "99 examples in 20 bins", "100")
    one_line(lambda: metrics.information_gap(codes, FACTORS, bins=1), "bins")
    one_line(lambda: metrics.importances(codes, FACTORS[:, :1]), "there is one")
    one_line(lambda: metrics.importances(codes, np.sort(FACTORS, axis=0)), "first half")
    one_line(lambda: metrics.importances(codes, FACTORS, trees=0), "trees")
    assert metrics.information_gap(codes[:100], FACTORS[:100] * 3).information.shape == (3, 3)
