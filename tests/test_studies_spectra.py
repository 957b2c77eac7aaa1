"""The study of spectra: exponents and laws are recovered where they are known, and what is none is called none."""

import numpy as np
import pytest
import torch
from errors import one_line

from nbvae import analytic, data
from nbvae.results import Estimate
from studies import lab
from studies import spectra as study
from studies.spectra import Plan


def gaussian(spectrum, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, len(spectrum))) * np.sqrt(spectrum))


def test_the_eigenvalues_are_those_of_a_rotated_sample():
    """Rows that are orthogonal make the covariance exact; a rotation changes no eigenvalue."""
    spectrum = np.array([4.0, 2.0, 0.5])
    rows = np.vstack([np.diag(np.sqrt(3 * spectrum)), -np.diag(np.sqrt(3 * spectrum))])
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    np.testing.assert_allclose(study.eigenvalues(torch.from_numpy(rows @ turn)), spectrum, rtol=1e-12)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0])
def test_a_power_law_makes_the_curve_a_power_with_its_exponent(alpha):
    """λ_i ∝ i^−α: MSE = T + C·R^(1−α) once many directions are coded, by reverse water-filling and not by this formula."""
    spectrum = np.arange(1, 200_001.0) ** -alpha
    rate = np.linspace(300, 3000, 60)
    mse = np.array([analytic.gaussian_distortion_rate(spectrum, each) for each in rate])
    power, residual = study.fit("power", rate, mse)
    assert power == pytest.approx(alpha - 1, abs=0.03)
    assert residual < 1e-3


def test_the_curve_of_eigenvalues_that_fall_like_one_over_the_rank_is_a_logarithm():
    spectrum = 1 / np.arange(1, 20_001.0)
    rate = np.linspace(50, 1000, 60)
    mse = np.array([analytic.gaussian_distortion_rate(spectrum, each) for each in rate])
    left = {law: study.fit(law, rate, mse)[1] for law in study.LAWS}
    assert left["logarithm"] < 2e-3 < left["exponential"] / 10


def test_the_curve_of_equal_eigenvalues_is_one_exponential_with_their_number():
    rate = np.linspace(0.5, 20, 60)
    mse = np.array([analytic.gaussian_distortion_rate(np.r_[np.ones(8), 1e-9 * np.ones(5)], each) for each in rate])
    directions, residual = study.fit("exponential", rate, mse)
    assert directions == pytest.approx(8, rel=1e-3)
    assert residual < 1e-4 < study.fit("logarithm", rate, mse)[1]


@pytest.mark.parametrize("law", study.LAWS)
def test_a_fit_does_not_depend_on_unit_and_offset(law):
    rate = np.linspace(2, 20, 40)
    mse = np.array([analytic.gaussian_distortion_rate(np.arange(1, 65.0) ** -1.3, each) for each in rate])
    first, second = study.fit(law, rate, mse), study.fit(law, rate, 10 + 255.0 * mse)
    assert first[1] == pytest.approx(second[1], rel=1e-5)
    assert (first[0] is None) == (law == "logarithm")
    assert (first[0] or 0) == pytest.approx(second[0] or 0, rel=1e-3)


def test_two_halves_that_disagree_are_no_power_law():
    each = {"5 to 180": Estimate(1.5, 0.01), "5 to 30": Estimate(1.1, 0.01), "30 to 180": Estimate(1.7, 0.01)}
    assert not study.is_power(each, 0.2)
    assert study.is_power(each | {"5 to 30": Estimate(1.6, 0.01)}, 0.2)


def test_the_spectrum_of_test_images_is_that_of_the_first_ones():
    found = study.measure("digits", None, 300, [2, 20], [2.0, 9.0], 10, 100, None, None, "cpu")
    x = data.load("digits", None).test[:100].flatten(1).double()
    assert found["of test images"].sum() == pytest.approx(x.var(0, correction=0).sum().item(), rel=1e-9)
    assert found["eigenvalues"].sum() != pytest.approx(x.var(0, correction=0).sum().item(), rel=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(200, 5), (10, 8)])
def test_data_with_few_directions_are_refused_in_one_line(tmp_path, rows, columns):
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype("float32")
    np.savez(tmp_path / "few.npz", train=x, validation=x, test=x)
    plan = study.plan(str(tmp_path / "few.npz"), "quick")
    said = f"from 6 directions on, in half of the examples; few.npz has {min(5, columns, rows // 2 - 1)}"
    one_line(lambda: study.run(plan, lab.Lab()), said)


def test_ranks_beyond_those_of_the_data_are_refused():
    one_line(
        lambda: study.measure("gaussian", None, 5, [1, 6], [0.1, 2.0], 10, 20, None, None, "cpu"),
        "ranks must be at most 4, the number of directions",
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ranks": (5,)}, "ranks must be two numbers > 0"),
        ({"ranks": (9, 4)}, "ranks must be two numbers > 0"),
        ({"rates": (0.0, 4.0)}, "rates must be two numbers > 0"),
        ({"points": 3}, "points must be at least 4"),
        ({"seeds": (0,)}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)


@pytest.mark.parametrize(("rate", "value"), [([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), ([1.0, 2.0, 3.0, 4.0], [2.0] * 4)])
def test_a_law_needs_four_points_and_a_fall(rate, value):
    one_line(lambda: study.fit("power", np.array(rate), np.array(value)), "at least four points that falls")
