"""Estimates: their arithmetic against simulation and closed forms, their rounding; tidy frames, means over seeds, pairs."""

import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import _tensors, data, estimators, metrics, models, objectives, training
from nbvae.results import Estimate, over_seeds, paired, tidy

# ---------------------------------------------------------------- the number


def test_an_estimate_is_the_mean_with_the_error_of_its_spread():
    values = [1.0, 2.0, 6.0]
    for made, over in (
        (Estimate.over_runs(values), "runs"),
        (Estimate.over_examples(np.array(values)), "examples"),
        (Estimate.of(torch.tensor(values), "draws"), "draws"),
        (Estimate.of(torch.tensor(values, requires_grad=True), "batches"), "batches"),
    ):
        assert float(made) == made.value == pytest.approx(3, abs=1e-12)
        assert made.stderr == pytest.approx(math.sqrt(7 / 3))
        assert (made.n, made.over) == (3, over)
        assert list(made.values) == values
        assert made.per_example is made.values
    assert estimators.Estimate is Estimate
    assert math.isnan(Estimate.over_runs([1.5]).stderr)
    bare = Estimate(1.0, 0.5, 7)
    assert (bare.over, bare.values, bare.per_example) == (None, None, None)
    assert "values" not in repr(Estimate.over_runs(np.zeros(1000)))


@pytest.mark.parametrize("values", [[1.0, math.inf], [-math.inf, math.inf], [1.0, math.nan]])
def test_values_without_a_mean_have_an_estimate_that_says_so_without_a_warning(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Estimate.of(values)
    assert not math.isfinite(made.value)
    assert math.isnan(made.stderr)


def test_two_estimates_are_equal_if_their_numbers_are():
    a = Estimate.over_runs([1.0, 3.0])
    assert a == Estimate(2.0, 1.0, 2, "runs")
    assert hash(a) == hash(Estimate(2.0, 1.0, 2, "runs"))
    assert a != Estimate(2.0, 1.0, 2, "examples")
    assert a != Estimate(2.0, 1.0, 3, "runs")
    assert Estimate(1.0) == Estimate(1.0, float("nan"))
    assert a != 2.0


def test_scaling_and_shifting_go_for_the_error_and_for_the_values():
    values = np.array([1.0, 2.0, 6.0, 4.0])
    a = Estimate.over_runs(values)
    for found, truth in (
        (-2 * a, -2 * values),
        (a * np.float64(3), 3 * values),
        (np.float64(3) * a, 3 * values),
        (np.float32(0.5) * a, 0.5 * values),
        (torch.tensor(2.0) * a, 2 * values),
        (a / 4, values / 4),
        (-a, -values),
        (a + 1, values + 1),
        (1 + a, values + 1),
        (a - 1, values - 1),
        (1 - a, 1 - values),
    ):
        expected = Estimate.over_runs(truth)
        assert found.value == pytest.approx(expected.value)
        assert found.stderr == pytest.approx(expected.stderr)
        assert (found.n, found.over) == (4, "runs")
        np.testing.assert_allclose(found.values, truth)
    assert (3 * Estimate(1.0, 0.5)).stderr == 1.5
    assert (Estimate(0.0, 0.1) * -3).stderr == pytest.approx(0.3)
    for call in (lambda: a * a, lambda: a * "2", lambda: a / a, lambda: a + "1", lambda: a * True, lambda: a * [1, 2]):
        with pytest.raises(TypeError):
            call()


def test_a_difference_says_whether_it_is_in_pairs():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=50)
    a_values, b_values = shared + 0.1 * rng.normal(size=50), shared + 0.1 * rng.normal(size=50)
    a, b = Estimate.over_examples(a_values), Estimate.over_examples(b_values)
    pairs, apart = a.minus(b, paired=True), a.minus(b, paired=False)
    assert pairs == Estimate.over_examples(a_values - b_values)
    assert pairs.value == pytest.approx(apart.value)
    assert apart.stderr == pytest.approx(math.hypot(a.stderr, b.stderr))
    assert pairs.stderr < apart.stderr / 3
    assert apart.values is None
    assert (apart.n, apart.over) == (50, "examples")
    mixed = a.minus(Estimate.over_runs([1.0, 2.0]), paired=False)
    assert (mixed.n, mixed.over) == (None, None)
    total = a.plus(b, paired=True)
    np.testing.assert_allclose(
        [total.value, total.stderr], [*(lambda e: (e.value, e.stderr))(Estimate.of(a_values + b_values))]
    )
    one_line(lambda: a - b, "a.minus(b, paired=True), or paired=False")
    one_line(lambda: a + b, "a.plus(b, paired=True), or paired=False")
    one_line(lambda: sum([a, b]), "a.plus(b, paired=True), or paired=False")
    one_line(lambda: np.mean([a, b]), "a.plus(b, paired=True), or paired=False")
    with pytest.raises(TypeError):
        a.minus(b)
    for other in (Estimate(1.0, 0.1, 50, "examples"), Estimate.over_examples(b_values[1:]), Estimate.over_runs(b_values)):
        one_line(
            lambda other=other: a.minus(other, paired=True),
            "a paired difference needs as many values on both sides, of one kind",
        )
    one_line(lambda: a.minus(1.0, paired=True), "minus takes an Estimate")


def test_errors_of_differences_cover_in_simulation():
    rng = np.random.default_rng(1)
    covered = {True: 0, False: 0}
    for _ in range(1000):
        for in_pairs in covered:
            shared = rng.normal(size=40)
            a = shared + rng.normal(size=40)
            b = (shared if in_pairs else rng.normal(size=40)) + rng.normal(size=40)
            gap = Estimate.of(a).minus(Estimate.of(b), paired=in_pairs)
            covered[in_pairs] += abs(gap.value) < 2 * gap.stderr
    # Two errors of 40 values cover 94.8 % by Student's t, 95.0 % of two sets; 1000 trials scatter by .7 %.
    assert all(0.92 < count / 1000 < 0.975 for count in covered.values())


def test_an_error_that_is_no_rounding_is_shown_and_the_smallest_numbers_are():
    assert f"{Estimate(1e10, 1.0)}" == "(1.00000000000 ± 0.00000000010)e+10"
    assert f"{Estimate(3.0, 3e-10)}" == "3.0000000000 ± 0.0000000003"
    assert f"{Estimate(1.0, 1e-16)}" == "1 ± 0"
    assert f"{Estimate(0.0, 5e-324)}" == "0 ± 0"


def test_bad_estimates_in_one_line():
    for call, message in (
        (lambda: Estimate("1"), "value must be a number; got '1'"),
        (lambda: Estimate(True), "value must be a number; got True"),
        (lambda: Estimate(torch.zeros(2, 2)), "value must be a number; got a Tensor of shape (2, 2)"),
        (lambda: Estimate(1.0, -0.1), "stderr must be a number >= 0, or nan; got -0.1"),
        (lambda: Estimate(1.0, None), "stderr must be a number >= 0, or nan; got None"),
        (lambda: Estimate(1.0, 0.1, 0), "n must be a whole number >= 1, got 0"),
        (lambda: Estimate(1.0, 0.1, 2.5), "n must be a whole number >= 1, got 2.5"),
        (lambda: Estimate(1.0, 0.1, 3, "seeds"), "over must be one of examples, runs, draws, batches; got 'seeds'"),
        (lambda: Estimate(1.0, 0.1, 3, values=[1.0]), "values must be the 3 that this is the mean of, got 1"),
        (lambda: Estimate(5.0, 0.1, values=[1.0, 2.0]), "value must be the mean of the values, 1.5; got 5"),
        (lambda: Estimate.over_runs([1.0, None]), "values must be numbers, got None"),
        (lambda: Estimate.over_runs(["1", "2"]), "values must be at least one number, (n,), got ['1', '2']"),
        (lambda: Estimate.over_runs([Estimate(1.0), Estimate(2.0)]), "float(e) is the value of one"),
        (lambda: Estimate.over_runs([]), "values must be at least one number, (n,)"),
        (lambda: Estimate.over_runs(1.0), "values must be at least one number, (n,)"),
        (lambda: Estimate.over_runs([[1.0, 2.0]]), "values must be at least one number, (n,), got a ndarray of shape (1, 2)"),
        (lambda: Estimate.over_runs(torch.zeros(0)), "values must be at least one number, (n,), got a Tensor of shape (0,)"),
        (lambda: Estimate.over_runs(["a"]), "values must be at least one number, (n,), got ['a']"),
        (lambda: Estimate.over_runs("abc"), "values must be at least one number, (n,), got 'abc'"),
        (lambda: Estimate.of([1.0], "seeds"), "over must be one of"),
    ):
        one_line(call, message)


# ---------------------------------------------------------------- its text


@pytest.mark.parametrize(
    ("value", "stderr", "spec", "text"),
    [
        (-0.32, 0.02, "", "-0.32 ± 0.02"),
        (-0.3234, 0.0213, "", "-0.32 ± 0.02"),
        (0.3234, 0.0213, "+", "+0.32 ± 0.02"),
        (-0.3234, 0.0213, "+", "-0.32 ± 0.02"),
        (-0.3234, 0.0213, ".3f", "-0.323 ± 0.021"),
        (0.3234, 0.0213, "+.3f", "+0.323 ± 0.021"),
        (0.3234, 0.0213, ".1%", "32.3% ± 2.1%"),
        (0.3234, 0.0213, ".2e", "3.23e-01 ± 2.13e-02"),
        (0.3234, 0.0143, "", "0.323 ± 0.014"),  # a first digit 1: rounding to one would change it by up to a third
        (0.3234, 0.0199, "", "0.323 ± 0.020"),
        (0.3234, 0.0996, "", "0.32 ± 0.10"),
        (0.3234, 0.096, "", "0.32 ± 0.10"),
        (0.3234, 0.95, "", "0.3 ± 0.9"),
        (5.0, 9.96, "", "5 ± 10"),
        (-0.003, 0.02, "", "0.00 ± 0.02"),
        (-0.003, 0.02, "+", "+0.00 ± 0.02"),
        (0.0, 0.3, "", "0.0 ± 0.3"),
        (123456.0, 2345.0, "", "123000 ± 2000"),
        (123456.0, 1345.0, "", "123500 ± 1300"),
        (72.345, 31.0, "", "70 ± 30"),
        (1.2345e9, 2.1e6, "", "(1.234 ± 0.002)e+09"),
        (-1.2345e-7, 2.1e-9, "+", "(-1.23 ± 0.02)e-07"),
        (3e-9, 2e-3, "", "0.000 ± 0.002"),
        (0.00032, 0.00002, "", "0.00032 ± 0.00002"),
        (0.25, 0.0, "", "0.25 ± 0"),
        (0.1 + 0.2, 1e-17, "", "0.3 ± 0"),  # rounding is no error
        (0.25, math.inf, "", "0.25 ± inf"),
        (0.3234567, math.nan, "", "0.3235"),
        (0.3234567, math.nan, "+", "+0.3235"),
        (0.3234567, math.nan, ".2f", "0.32"),
        (123456.7, math.nan, "", "123457"),
        (3.0, math.nan, "", "3"),
        (1e12, math.nan, "", "1e+12"),
        (math.nan, math.nan, "", "nan"),
        (math.nan, 0.1, "", "nan ± 0.1"),
        (-math.inf, 0.1, "", "-inf ± 0.1"),
        (-0.3234, 0.0213, ">15", "   -0.32 ± 0.02"),
    ],
)
def test_value_and_error_end_at_the_same_digit(value, stderr, spec, text):
    assert format(Estimate(value, stderr), spec) == text


def test_text_is_right_to_its_last_digit_at_every_scale():
    """The error that is shown is within its rounding of the true one: half a unit in 2, at least, or in 10."""
    rng = np.random.default_rng(2)
    for _ in range(2000):
        error = float(10 ** rng.uniform(-12, 12))
        value = float(rng.normal() * error * 10 ** rng.uniform(-2, 4))
        text = str(Estimate(value, error))
        found = re.fullmatch(r"\(?(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)(?:\)(e[+-]\d\d))?", text)
        assert found, text
        shown, shown_error = (float(f"{part}{found[3] or ''}") for part in found.groups()[:2])
        decimals = [len(part.partition(".")[2]) for part in found.groups()[:2]]
        assert decimals[0] == decimals[1]
        unit = abs(shown_error - error)
        assert unit <= error / 4 * (1 + 1e-9), text
        assert abs(shown - value) <= error / 2 * (1 + 1e-6), text
        assert len(text) < 32, text


def test_the_error_of_an_unknown_value_is_not_invented():
    assert str(Estimate(2.0, math.nan, 1, "runs")) == "2" == f"{Estimate.over_runs([2.0])}"
    assert "±" not in f"{Estimate(2.0):+.3f}"
    with pytest.raises(ValueError, match="Format specifier"):
        format(Estimate(1.0, 0.1), ".f")


# ---------------------------------------------------------------- frames


def test_a_frame_has_the_columns_of_its_kind_in_their_order():
    frame = Estimate(1.5, 0.2, 10, "examples").to_frame(
        "log_p", split="test", method="iwae", dataset="digits", seed=3, study=None
    )
    assert list(frame) == ["dataset", "seed", "split", "method", "quantity", "value", "stderr", "n"]
    assert frame.iloc[0].tolist() == ["digits", 3, "test", "iwae", "log_p", 1.5, 0.2, 10]
    assert frame["n"].dtype == frame["seed"].dtype == "int64"
    one_line(lambda: Estimate(1.0).to_frame(value=3), "value is a column of the rows themselves")
    one_line(
        lambda: Estimate(1.0).to_frame(beta=[1, 2]), "beta must be one value for all rows, a number or a string; got [1, 2]"
    )


def seeds_and_betas():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(4, 3)) for name in ("vae", "film", "gates")}
    axes = {"seed": [3, 0, 7, 1], "beta": [0.1, 1.0, 10.0]}
    frame = pd.concat([tidy(each, axes, "loss", objective=name) for name, each in values.items()], ignore_index=True)
    return values, frame


def test_an_array_becomes_rows_and_its_axes_columns():
    values, frame = seeds_and_betas()
    assert list(frame) == ["objective", "beta", "seed", "quantity", "value", "stderr", "n"]
    assert len(frame) == 3 * 4 * 3
    one = frame[(frame.objective == "film") & (frame.beta == 10.0) & (frame.seed == 7)]
    assert one.value.tolist() == [values["film"][2, 2]]
    one_line(lambda: tidy([1.0, 2.0], {"seed": [0]}, "loss"), "the axes seed have (1,) places, the values the shape (2,)")
    one_line(lambda: tidy([], {"seed": []}, "loss"), "the axes seed have (0,) places")


def test_means_over_seeds_are_those_of_the_arrays_in_whatever_order_the_rows_come():
    values, frame = seeds_and_betas()
    shuffled = frame.sample(frac=1.0, random_state=0)
    each = over_seeds(shuffled, by=["objective", "beta"])
    means = over_seeds(shuffled, by="objective", mean_over="beta")
    for name, array in values.items():
        for column, beta in enumerate((0.1, 1.0, 10.0)):
            assert each[name, beta].value == pytest.approx(array[:, column].mean())
            assert each[name, beta].stderr == pytest.approx(array[:, column].std(ddof=1) / 2)
            assert (each[name, beta].n, each[name, beta].over) == (4, "runs")
        assert means[name].value == pytest.approx(array.mean())
        assert means[name].stderr == pytest.approx(array.mean(1).std(ddof=1) / 2)
    one = over_seeds(frame[frame.objective == "vae"], mean_over=["beta"])
    assert one.value == pytest.approx(means["vae"].value)
    table = over_seeds(frame, by=["objective", "beta"]).unstack("beta", sort=False)
    assert list(table.index) == ["vae", "film", "gates"]
    assert list(table) == [0.1, 1.0, 10.0]
    single = over_seeds(frame[frame.seed == 3], by=["objective", "beta"])["vae", 0.1]
    assert single.value == values["vae"][0, 0]
    assert math.isnan(single.stderr)


def test_means_average_nothing_that_was_not_named():
    _, frame = seeds_and_betas()
    other = frame.assign(quantity="rate")
    for call, message in (
        (
            lambda: over_seeds(frame, by="objective"),
            "objective = vae has several beta: select one, or name it in by or in mean_over",
        ),
        (lambda: over_seeds(frame, mean_over="beta"), "the frame has several objective"),
        (lambda: over_seeds(pd.concat([frame, other]), ["objective", "beta"]), "has several quantity"),
        (
            lambda: over_seeds(pd.concat([frame, frame]), ["objective", "beta"]),
            "objective = vae, beta = 0.1 has two rows of one seed",
        ),
        (lambda: over_seeds(frame.iloc[1:], "objective", "beta"), "objective = vae has no value for some beta of some seed"),
        (lambda: over_seeds(frame.iloc[:-1], ["objective"], ["beta"]), "objective = gates has no value for some beta"),
        (lambda: over_seeds(frame, by="colour"), "by must be among the columns of the frame, objective, beta, seed"),
        (lambda: over_seeds(frame.drop(columns="seed"), by="objective"), "the frame has no column seed"),
        (lambda: over_seeds(frame.assign(seed=None), by="objective"), "each with its seed"),
        (lambda: over_seeds(frame.iloc[:0], by="objective"), "needs rows"),
        (lambda: over_seeds([1, 2]), "needs a tidy frame, as to_frame() makes one, got list"),
    ):
        one_line(call, message)
    hole = frame.copy()
    hole.loc[0, "value"] = math.nan
    assert math.isnan(over_seeds(hole, "objective", "beta")["vae"].value)  # not left out silently


def test_paired_differences_have_the_error_of_the_pairs():
    values, frame = seeds_and_betas()
    less = paired(frame.sample(frac=1.0, random_state=1), objective="vae")
    assert list(less) == list(frame)
    assert set(less.objective) == {"film", "gates"}
    found = over_seeds(less, by="objective", mean_over="beta")
    for name in ("film", "gates"):
        truth = (values[name] - values["vae"]).mean(1)
        assert found[name].value == pytest.approx(truth.mean())
        assert found[name].stderr == pytest.approx(truth.std(ddof=1) / 2)
        by_hand = over_seeds(frame[frame.objective == name], mean_over="beta").minus(
            over_seeds(frame[frame.objective == "vae"], mean_over="beta"), paired=True
        )
        assert by_hand.stderr == pytest.approx(found[name].stderr)
    # Two columns select the baseline together.
    two = frame.assign(power=(frame.objective == "gates").astype(float))
    again = over_seeds(paired(two, objective="vae", power=0.0), by="objective", mean_over="beta")
    assert again["gates"] == found["gates"]
    assert less.stderr.isna().all()


def test_pairs_are_complete_and_unique():
    _, frame = seeds_and_betas()
    for call, message in (
        (lambda: paired(frame), "a baseline is a column that tells models apart"),
        (lambda: paired(frame, quantity="loss"), "a baseline is a column that tells models apart"),
        (lambda: paired(frame, colour=1), "baseline must be among the columns of the frame"),
        (lambda: paired(frame, objective="dip"), "no row has objective = dip; there are vae, film, gates"),
        (
            lambda: paired(frame.iloc[1:], objective="vae"),
            "no row of objective = vae is the partner of objective = film, beta = 0.1, seed = 3",
        ),
        (lambda: paired(pd.concat([frame, frame.iloc[:1]]), objective="vae"), "two rows agree in beta, seed, quantity"),
        (lambda: paired(pd.concat([frame, frame.iloc[-1:]]), objective="vae"), "two rows agree in beta, seed, quantity"),
    ):
        one_line(call, message)


# ---------------------------------------------------------------- every result


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    model = models.VAE((6,), latent_dim=3, likelihood="gaussian", sigma=0.5, hidden=(8,))
    x = torch.randn(40, 6)
    means = [model.posterior(x).mean.detach(), model.posterior(x + 0.1).mean.detach()]
    return {
        "decomposition": estimators.decompose(model, x, n_samples=3, groups=[[0], [1, 2]]),
        "cross": estimators.decompose(model, x, x + 1, n_samples=3),
        "minibatch": estimators.minibatch_terms(model, x, 10, n_batches=12),
        "moments": estimators.moments(model, x),
        "active": estimators.active_units(model, x, threshold=1e-6),
        "point": estimators.evaluate(model, x, n_samples=2),
        "alignment": metrics.alignment(*means, threshold=1e-9),
        "coverage": metrics.coverage(x, x + 0.1, k=3, n_bootstrap=20),
    }


def test_every_result_has_its_quantities_by_name_and_as_a_tidy_frame(measured):
    k, n = 3, 40
    vectors = [f"{name}[{i}]" for name in ("dimension_kl_per_latent", "information_per_latent") for i in range(k)]
    terms = ["mutual_information", "marginal_kl", "total_correlation", "dimension_kl"]
    moments = [f"{name}[{i}]" for name in ("mean", "second_moment") for i in range(k)]
    expected = {
        "cross": (
            ["distortion", "rate", *(f"cross_{name}" for name in ("information", "marginal", "correlation", "dimension"))],
            n,
        ),
        "minibatch": (terms, 12),
        "moments": (moments, n),
        "active": (["count", *(f"variance[{i}]" for i in range(k))], n),
        "point": (["rate", "distortion", "mse", "loss"], n),
        "alignment": (["by_channel", "matched", "cca", "cka", "active"], None),
        "coverage": (["precision", "recall", "density", "coverage"], n),
        "decomposition": (
            ["log_n", "distortion", "rate", "mutual_information", "mutual_information_upper"]  # noqa: RUF005
            + ["marginal_kl", "marginal_kl_lower", *terms[2:], *vectors, "between_groups", "within_groups"],
            n,
        ),
    }
    assert set(expected) == set(measured)
    for kind, (names, count) in expected.items():
        result = measured[kind]
        frame = result.to_frame(dataset="none", seed=3, split="test")
        constant = ["beta"] if kind == "point" else []
        assert list(frame) == ["dataset", *constant, "seed", "split", "quantity", "value", "stderr", "n"]
        assert frame["quantity"].tolist() == names, kind
        assert frame["n"].isna().all() if count is None else (frame["n"] == count).all()
        for name, value, error in zip(names, frame["value"], frame["stderr"], strict=True):
            estimate = result.estimate(name)
            assert estimate == Estimate(value, error, count, "batches" if kind == "minibatch" else "examples")
        one_line(lambda result=result: result.estimate("nonsense"), f"a quantity must be one of {names[0]}, ")


def test_quantities_are_the_fields_and_their_errors(measured):
    found = measured["decomposition"]
    assert found.estimate("rate") == Estimate(found.rate, found.rate_stderr, 40, "examples")
    for i in range(3):
        each = found.estimate(f"dimension_kl_per_latent[{i}]")
        assert each.value == found.dimension_kl_per_latent[i].item()
        assert each.stderr == found.dimension_kl_per_latent_stderr[i].item()
    assert math.isnan(found.estimate("log_n").stderr)
    assert measured["active"].estimate("count").value == measured["active"].count
    assert measured["minibatch"].estimate("marginal_kl") is measured["minibatch"].marginal_kl
    assert measured["point"].estimate("loss").stderr == measured["point"].loss_stderr
    mean = estimators.Decomposition.mean_of([found, found])
    assert mean.estimate("rate") == Estimate(found.rate, 0.0, 2, "runs")
    assert "between_groups" not in measured["cross"].estimates()


def test_an_interval_has_the_error_of_its_longer_side(measured):
    precision = measured["coverage"].precision
    assert precision.high == 1.0  # cut there
    estimate = precision.estimate()
    assert (estimate.value, estimate.n) == (precision.value, precision.n)
    assert estimate.stderr == pytest.approx((precision.value - precision.low) / 1.96)
    assert precision.to_frame("precision", dataset="none")["quantity"].tolist() == ["precision"]
    assert math.isnan(metrics.Measured(0.3, math.nan, math.nan, 10).estimate().stderr)
    assert metrics.Measured(0.3, 0.3, 0.3, 10).estimate().stderr == 0
    # Of a mean with known error, the error: both sides are 1.96 of it.
    assert metrics.Measured(2.0, 2.0 - 0.98, 2.98, 10).estimate().stderr == pytest.approx(0.5)


def test_a_curve_of_trained_runs_keeps_their_seeds():
    ds = data.load("digits")
    runs = [
        training.fit(
            models.VAE(ds.shape, 2, hidden=(8,)), ds, objectives.BetaVAE(beta), training.TrainConfig(1, 400, seed=seed)
        )
        for seed in (5, 2)
        for beta in (0.5, 2.0)
    ]
    curve = estimators.rd_curve(runs, ds.test, n_samples=1)
    for point in curve:
        assert [run.seed for run in point.runs] == [5, 2]
        for run in point.runs:
            [model] = [each.model for each in runs if each.config.seed == run.seed and each.objective.beta == point.beta]
            assert run == estimators.evaluate(model, ds.test, point.beta, n_samples=1)
    assert set(curve.to_frame()["n"]) == {len(ds.test)}
    assert estimators.rd_curve(runs[0], ds.test, 1).to_frame()["seed"].unique().tolist() == [5]
    assert curve.regret(curve, paired=True).estimate("mean") == Estimate(0.0, 0.0, 2, "runs")
    bare = [models.MultiBetaVAE(ds.shape, 2, hidden=(8,)) for _ in range(2)]
    assert "seed" not in estimators.rd_curve(bare, ds.test, 1, betas=[0.5]).to_frame()


# ---------------------------------------------------------------- the β of a rate


@pytest.mark.parametrize("network", ["mlp", "linear"])
def test_a_model_of_many_beta_at_a_rate_has_that_rate(network, monkeypatch):
    torch.manual_seed(0)
    model = models.MultiBetaVAE((6,), 3, network, "gaussian", sigma=0.5, beta_range=(0.01, 10.0)).double()
    x = 2 * torch.randn(200, 6, dtype=torch.float64)
    ends = [estimators.evaluate(model.at(beta), x, n_samples=1).rate for beta in (0.01, 10.0)]
    before = [parameter.clone() for parameter in model.parameters()]
    for share in (0.9, 0.5, 0.1):
        wanted = ends[1] + share * (ends[0] - ends[1])
        view = model.at(rate=wanted, x=x)
        assert estimators.evaluate(view, x, n_samples=1).rate == pytest.approx(wanted, abs=1e-6)
        assert 0.01 < view.beta < 10.0
        monkeypatch.setattr(_tensors, "AT_ONCE", 6 * 7)  # parts of seven examples
        assert model.at(rate=wanted, x=x).beta == pytest.approx(view.beta, rel=1e-6)
        monkeypatch.undo()
    # A curve of the model's own points says the same, between them.
    betas = np.geomspace(0.01, 10.0, 60)
    curve = estimators.rd_curve(model, x, 1, betas=betas)
    assert curve.beta_at(wanted) == pytest.approx(view.beta, rel=2e-2)
    assert [model.at(rate=end, x=x).beta for end in ends] == pytest.approx([0.01, 10.0], rel=1e-6)
    assert model.at(1.0).beta == model.at(beta=1.0).beta == 1.0
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


def test_the_rate_is_measured_in_evaluation_mode_which_is_put_back():
    torch.manual_seed(0)
    model = models.MultiBetaVAE((6,), 2, "mlp", "gaussian", sigma=0.5).double()
    model.noise = torch.nn.Dropout(0.5)
    encode = model.encode
    model.encode = lambda x, condition: encode(model.noise(x), condition)
    x = torch.randn(100, 6, dtype=torch.float64)
    model.train()
    model.observation.eval()
    view = model.at(rate=(rate := estimators.evaluate(model.at(0.7), x, n_samples=1).rate), x=x)
    assert view.beta == pytest.approx(0.7, rel=1e-6)
    assert model.training
    assert model.noise.training
    assert not model.observation.training
    one_line(lambda: model.at(rate=1e9, x=x), "rate must be within what the model has on x")
    assert model.noise.training  # also after an error
    assert rate > 0


def test_a_rate_out_of_reach_and_arguments_that_do_not_fit_are_refused():
    torch.manual_seed(0)
    model, x = models.MultiBetaVAE((6,), 2, likelihood="gaussian", sigma=0.5, beta_range=(0.1, 5.0)), torch.randn(30, 6)
    low, high = (estimators.evaluate(model.at(beta), x, n_samples=1).rate for beta in (5.0, 0.1))
    reach = f"{high:.6g} nats at beta = 0.1 to {low:.6g} at 5; got"
    for rate in (low * 0.99, high * 1.01):
        one_line(lambda rate=rate: model.at(rate=rate, x=x), f"what the model has on x, {reach}")
    both = "at() takes one beta, or a rate (nats) with the examples x to have it on"
    for call, message in (
        (lambda: model.at(), both),
        (lambda: model.at(1.0, rate=3.0, x=x), both),
        (lambda: model.at(rate=3.0), both),
        (lambda: model.at(x=x), both),
        (lambda: model.at(1.0, x=x), both),
        (lambda: model.at(rate=-1.0, x=x), "rate must be a finite number >= 0"),
        (lambda: model.at(rate=math.nan, x=x), "rate must be a finite number >= 0"),
        (lambda: model.at(rate="3", x=x), "rate must be a finite number >= 0"),
        (lambda: model.at(rate=3.0, x=x[:0]), "x must have at least 1 example"),
        (lambda: model.at(rate=3.0, x=x.numpy()), "x must be a torch tensor of examples"),
        (lambda: model.at(rate=3.0, x=x[:, :3]), "shape"),
        (lambda: model.at(True), "at() takes one beta"),
        (lambda: model.at([0.5, 1.0]), "at() takes one beta"),
        (lambda: model.at(0.05), "0.1 to 5; got 0.05"),
    ):
        one_line(call, message)
