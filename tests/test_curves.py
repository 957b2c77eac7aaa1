"""Curves: closed forms of regret, front, interpolation and envelope; exact storage; bad files refused in one line."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from nbvae import results
from nbvae.curves import RDCurve, RDPoint

SPECTRUM = np.array([5, 3, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05])


def gaussian_optimum(beta: float, sigma2: float = 0.5) -> RDPoint:
    """Reverse water-filling at the level βσ²: the optimum of D + βR for a linear-Gaussian model with k = n."""
    level = beta * sigma2
    rate = 0.5 * np.log(np.maximum(SPECTRUM / level, 1)).sum()
    mse = np.minimum(SPECTRUM, level).sum()
    distortion = mse / (2 * sigma2) + 0.5 * len(SPECTRUM) * math.log(2 * math.pi * sigma2)
    return RDPoint(beta, rate, distortion, mse)


def refused(message: str, error: type[Exception] = ValueError):
    """The block must raise one line with no context, which holds `message`."""

    class Check:
        def __enter__(self):
            return self

        def __exit__(self, kind, raised, trace):
            assert kind is not None, "nothing was refused"
            assert isinstance(raised, error)
            assert message in str(raised)
            assert "\n" not in str(raised)
            assert raised.__cause__ is None
            assert raised.__context__ is None or raised.__suppress_context__
            return True

    return Check()


def test_points_are_sorted_found_and_read_as_columns():
    curve = RDCurve([RDPoint(2.0, 1.0, 5.0, 3.0, 0.1, 0.2, 0.3), RDPoint(np.float64(0.5), 3, 3.0)])
    assert len(curve) == 2
    assert [point.beta for point in curve] == [0.5, 2.0]
    assert curve[2.0].rate == curve[2 * (1 + 1e-9)].rate == 1.0
    np.testing.assert_array_equal(curve.rates, [3.0, 1.0])
    np.testing.assert_array_equal(curve.distortions, [3.0, 5.0])
    np.testing.assert_array_equal(curve.mses, [math.nan, 3.0])
    np.testing.assert_array_equal(curve.rate_stderrs, [math.nan, 0.1])
    np.testing.assert_array_equal(curve.distortion_stderrs, [math.nan, 0.2])
    np.testing.assert_array_equal(curve.mse_stderrs, [math.nan, 0.3])
    np.testing.assert_array_equal(curve.loss(), [4.5, 7.0])
    np.testing.assert_allclose(curve.loss_stderrs, [math.nan, 0.2 + 2 * 0.1])
    with refused("no point at beta = 1.0; the curve has 0.5, 2", KeyError):
        curve[1.0]


def test_bad_points_and_curves_are_refused():
    for arguments, message in [
        ((0, 1, 1), "beta must be a finite number > 0, got 0"),
        ((1, math.nan, 1), "rate must be a finite number; got nan"),
        ((1, 1, math.inf), "distortion must be a finite number; got inf"),
        ((1, 1, 1, "x"), "mse must be a finite number, or nan; got 'x'"),
        ((1, 1, 1, 1, -0.1), "rate_stderr must be >= 0, or nan; got -0.1"),
        ((1, 1, 1, 1, 0, 0, 0, 0), "n_runs must be a whole number >= 1, got 0"),
    ]:
        with refused(message):
            RDPoint(*arguments)
    for points in ([], 3, [1, 2]):
        with refused("at least one point, each an RDPoint"):
            RDCurve(points)
    with refused("one point for each beta, got two at 0.1"):
        RDCurve([RDPoint(0.1, 1, 1), RDPoint(0.1 + 1e-12, 2, 1)])


def test_the_mean_of_runs_has_the_spread_of_the_runs_as_its_error():
    rates, distortions = np.array([1.0, 2.0, 4.0]), np.array([9.0, 8.5, 6.0])
    mean = RDPoint.mean_of([RDPoint(0.5, r, d, 2 * d) for r, d in zip(rates, distortions, strict=True)])
    assert mean.n_runs == 3
    assert mean.rate == pytest.approx(7 / 3)
    assert mean.mse == pytest.approx(2 * mean.distortion)
    assert mean.rate_stderr == pytest.approx(rates.std(ddof=1) / math.sqrt(3))
    assert mean.mse_stderr == pytest.approx(2 * mean.distortion_stderr)
    assert mean.loss_stderr == pytest.approx((distortions + 0.5 * rates).std(ddof=1) / math.sqrt(3))
    assert mean.loss_stderr < mean.distortion_stderr + 0.5 * mean.rate_stderr
    with refused("at least two points"):
        RDPoint.mean_of([mean])
    with refused("points of one beta, got 1, 2"):
        RDPoint.mean_of([RDPoint(1, 1, 1), RDPoint(2, 1, 1)])


def seeded_curve(rates, distortions, seeds, betas=(0.5, 2.0), **more):
    """rates, distortions (seeds, betas): a curve of means that keep their runs."""
    points = []
    for column, beta in enumerate(betas):
        runs = [
            RDPoint(beta, r, d, 2 * d, 0.1, 0.2, 0.3, loss_stderr=0.25, n_examples=397, seed=seed, **more)
            for r, d, seed in zip(rates[:, column], distortions[:, column], seeds, strict=True)
        ]
        points.append(RDPoint.mean_of(runs) if len(runs) > 1 else runs[0])
    return RDCurve(points)


RATES, DISTORTIONS = np.array([[5.0, 1.0], [5.5, 1.5], [6.0, 0.5]]), np.array([[3.0, 8.0], [2.0, 8.5], [2.5, 7.0]])


def test_a_mean_keeps_its_runs_and_its_frame_has_a_row_for_each_seed():
    curve = seeded_curve(RATES, DISTORTIONS, [4, 0, 9])
    assert [run.rate for run in curve[0.5].runs] == [5.0, 5.5, 6.0]
    assert curve[0.5].n_examples == 397
    assert curve[0.5].seed is None
    rate = curve[0.5].estimate("rate")
    assert (rate.value, rate.stderr, rate.n, rate.over) == (5.5, curve[0.5].rate_stderr, 3, "runs")
    assert curve[0.5].estimate("loss").stderr == pytest.approx(curve[0.5].loss_stderr)
    frame = curve.to_frame(dataset="digits", split="test")
    assert list(frame) == ["dataset", "beta", "seed", "split", "quantity", "value", "stderr", "n"]
    assert len(frame) == 2 * 3 * 4
    assert frame["seed"].tolist()[::4] == [4, 0, 9] * 2
    assert set(frame["n"]) == {397}  # of the examples, as the error beside it
    assert set(frame["quantity"]) == {"rate", "distortion", "mse", "loss"}
    means = results.over_seeds(frame, by=["beta", "quantity"])
    for point in curve:
        for name in ("rate", "distortion", "mse"):
            assert means[point.beta, name].value == pytest.approx(getattr(point, name))
            assert means[point.beta, name].stderr == pytest.approx(getattr(point, f"{name}_stderr"))
        assert means[point.beta, "loss"].stderr == pytest.approx(point.loss_stderr)


def test_what_is_not_known_is_no_column():
    bare = RDCurve([RDPoint(1.0, 2.0, 3.0), RDPoint(2.0, 1.0, 5.0, n_runs=6, rate_stderr=0.1)]).to_frame()
    assert list(bare) == ["beta", "quantity", "value", "stderr", "n"]
    assert set(bare["quantity"]) == {"rate", "distortion", "loss"}
    assert bare["n"].isna().tolist() == [True] * 3 + [False] * 3
    assert set(bare["n"].dropna()) == {6}
    with refused("beta is a column of the rows themselves"):
        RDCurve([RDPoint(1.0, 2.0, 3.0)]).to_frame(beta=2.0)
    assert RDCurve([RDPoint(1.0, 2.0, 3.0)]).to_frame(seed=3)["seed"].tolist() == [3] * 3
    with refused("seed is a column of the rows themselves"):
        RDCurve([RDPoint(1.0, 2.0, 3.0, seed=1)]).to_frame(seed=3)
    assert RDPoint(1.0, 2.0, 3.0, seed=1) == RDPoint(1.0, 2.0, 3.0)  # a label
    with refused("a quantity must be one of rate, distortion, loss; got 'mse'"):
        RDPoint(1.0, 2.0, 3.0).estimate("mse")


def test_runs_that_are_not_those_of_the_point_are_refused():
    one, two = RDPoint(1.0, 2.0, 3.0), RDPoint(1.0, 4.0, 5.0)
    assert RDPoint(1.0, 3.0, 4.0, n_runs=2, runs=[one, two]).runs == (one, two)
    for arguments in ({"n_runs": 3}, {"n_runs": 1}, {"n_runs": 2, "beta": 2.0}, {"n_runs": 2, "runs": [one, 3]}):
        with refused("points of one run each at beta ="):
            RDPoint(**{"beta": 1.0, "rate": 3.0, "distortion": 4.0, "runs": [one, two]} | arguments)
    with refused("the runs have the mean rate and distortion 3 and 4, not the point's"):
        RDPoint(1.0, 3.1, 4.0, n_runs=2, runs=[one, two])
    for arguments, message in (
        ({"seed": -1}, "seed must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"n_examples": 0}, "n_examples must be"),
    ):
        with refused(message):
            RDPoint(1.0, 2.0, 3.0, **arguments)


def test_a_paired_regret_is_that_of_the_seeds_whatever_their_order():
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(3, 2))
    one = seeded_curve(RATES + shift, DISTORTIONS, [4, 0, 9])
    two = seeded_curve(RATES[::-1], DISTORTIONS[::-1], [9, 0, 4])
    regret, apart = one.regret(two, paired=True), one.regret(two)
    each = shift * [0.5, 2.0]
    np.testing.assert_allclose(regret.runs, each)
    assert regret.seeds == (4, 0, 9)
    np.testing.assert_allclose(regret.per_beta, each.mean(0))
    np.testing.assert_allclose(regret.per_beta_stderr, each.std(0, ddof=1) / math.sqrt(3))
    assert regret.mean_stderr == pytest.approx(each.mean(1).std(ddof=1) / math.sqrt(3))
    mean = regret.estimate("mean")
    assert (mean.value, mean.stderr, mean.n, mean.over) == (regret.mean, regret.mean_stderr, 3, "runs")
    assert regret.estimate("per_beta[1]").value == regret.per_beta[1]
    np.testing.assert_allclose(apart.per_beta, regret.per_beta)
    assert not np.allclose(apart.per_beta_stderr, regret.per_beta_stderr)
    assert apart.runs is None
    assert (apart.estimate("mean").stderr, apart.estimate("mean").over) == (apart.mean_stderr, None)
    frame = regret.to_frame(dataset="digits")
    assert list(frame) == ["dataset", "beta", "seed", "quantity", "value", "stderr", "n"]
    assert results.over_seeds(frame, mean_over="beta") == mean
    assert apart.to_frame()["stderr"].tolist() == apart.per_beta_stderr.tolist()
    # The frames of the curves give the same.
    both = pd.concat([one.to_frame(model="one"), two.to_frame(model="two")])
    losses = both[both["quantity"] == "loss"]
    again = results.over_seeds(results.paired(losses, model="two"), by="model", mean_over="beta")["one"]
    assert again.value == pytest.approx(mean.value)
    assert again.stderr == pytest.approx(mean.stderr)
    single = seeded_curve(RATES[:1], DISTORTIONS[:1], [4]).regret(seeded_curve(RATES[1:2], DISTORTIONS[:1], [4]), paired=True)
    assert math.isnan(single.mean_stderr)
    assert single.mean == pytest.approx(((RATES[0] - RATES[1]) * [0.5, 2.0]).mean())


def test_pairs_need_the_same_seeds():
    curve = seeded_curve(RATES, DISTORTIONS, [4, 0, 9])
    for other, message in (
        (seeded_curve(RATES, DISTORTIONS, [4, 0, 8]), "runs with the same seeds"),
        (seeded_curve(RATES[:2], DISTORTIONS[:2], [4, 0]), "runs with the same seeds"),
        (seeded_curve(RATES, DISTORTIONS, [4, 4, 9]), "each with a seed of its own; at beta = 0.5"),
        (seeded_curve(RATES, DISTORTIONS, [None] * 3), "each with a seed of its own"),
        (RDCurve([RDPoint(0.5, 1.0, 2.0, n_runs=3, seed=4)]), "each with a seed of its own"),
    ):
        for one, two in ((curve, other), (other, curve)):
            with refused(message):
                one.regret(two, paired=True)


def test_beta_at_is_exact_where_the_rate_falls_with_log_beta():
    """While every latent is on, R = ½ Σ log(λ/βσ²) is a straight line in log β."""
    curve = RDCurve([gaussian_optimum(beta) for beta in (0.005, 0.02, 0.09)])
    for beta in (0.005, 0.011, 0.02, 0.05, 0.09):
        assert curve.beta_at(gaussian_optimum(beta).rate) == pytest.approx(beta, rel=1e-12)
    close = RDCurve([gaussian_optimum(beta) for beta in np.geomspace(0.01, 9.9, 200)])
    for beta in (0.3, 1.1, 4.0, 7.7):
        assert close.beta_at(rate=gaussian_optimum(beta).rate) == pytest.approx(beta, rel=1e-2)


def test_beta_at_never_rises_with_the_rate():
    rng = np.random.default_rng(0)
    betas = np.geomspace(0.01, 10, 12)
    for _ in range(20):
        rates = np.linspace(20, 0, 12) + rng.normal(size=12) * 3
        curve = RDCurve([RDPoint(beta, rate, 1.0) for beta, rate in zip(betas, rates, strict=True)])
        with pytest.raises(ValueError, match=r"within the curve's, (\S+) to (\S+) nats") as error:
            curve.beta_at(1e3)
        low, high = (float(text) for text in str(error.value).split("curve's, ")[1].split(" nats")[0].split(" to "))
        assert rates.min() - 1e-4 <= low < high <= rates.max() + 1e-4
        found = [curve.beta_at(rate) for rate in np.linspace(low + 1e-3, high - 1e-3, 200)]
        assert (np.diff(found) <= 1e-12).all()
        assert betas[0] * (1 - 1e-9) <= min(found) < max(found) <= betas[-1] * (1 + 1e-9)
    flat = RDCurve([RDPoint(1.0, 4.0, 1.0), RDPoint(2.0, 0.0, 9.0), RDPoint(3.0, 0.0, 9.0)])
    assert flat.beta_at(0) == pytest.approx(2.0)  # the smallest β of a collapsed model
    assert RDCurve([RDPoint(3.0, 4.0, 1.0)]).beta_at(4.0) == pytest.approx(3.0)
    for rate in (4.1, -0.1, math.nan, math.inf, "4", None, True, [1.0]):
        with refused("rate must be one number within the curve's, 0 to 4 nats; got"):
            flat.beta_at(rate)


@pytest.mark.parametrize("correlation", [-1.0, -0.7, 0.0, 0.4, 1.0])
def test_the_error_of_a_loss_at_any_beta_follows_from_that_at_its_own(correlation):
    """For var D, var R and any covariance: exact with `loss_stderr`, an upper bound without."""
    sd_r, sd_d, own = 0.3, 0.5, 2.0

    def exact(beta: float) -> float:
        return math.sqrt(max(0.0, sd_d**2 + (beta * sd_r) ** 2 + 2 * beta * correlation * sd_d * sd_r))

    known = RDPoint(own, 1, 1, rate_stderr=sd_r, distortion_stderr=sd_d, loss_stderr=exact(own))
    unknown = RDPoint(own, 1, 1, rate_stderr=sd_r, distortion_stderr=sd_d)
    for beta in (0.1, 1.0, own, 7.0):
        assert known.loss_error(beta) == pytest.approx(exact(beta), abs=1e-7)
        assert unknown.loss_error(beta) >= exact(beta) - 1e-12


def test_regret_is_the_difference_of_losses_at_shared_betas():
    one = RDCurve([RDPoint(b, r, d, loss_stderr=0.3) for b, r, d in [(0.1, 9, 1), (1.0, 5, 3), (10.0, 1, 9)]])
    two = RDCurve([RDPoint(b, r, d, loss_stderr=0.4) for b, r, d in [(1.0 + 1e-9, 4, 3.5), (10.0, 2, 3), (20.0, 0, 9)]])
    regret = one.regret(two)
    np.testing.assert_array_equal(regret.betas, [1.0, 10.0])
    np.testing.assert_allclose(regret.per_beta, [0.5, -4.0])
    np.testing.assert_allclose(regret.per_beta_stderr, [0.5, 0.5])
    assert regret.mean == pytest.approx(-1.75)
    assert regret.mean_stderr == pytest.approx(0.5 / math.sqrt(2))
    np.testing.assert_allclose(two.regret(one).per_beta, -regret.per_beta)
    np.testing.assert_array_equal(one.regret(one).per_beta, 0)
    with refused("a regret is against another RDCurve, got 3"):
        one.regret(3)
    with refused("share no beta: one has 0.1, 1, 10, the other 3"):
        one.regret(RDCurve([RDPoint(3, 1, 1)]))


def test_the_regret_of_any_model_against_the_optimum_is_positive():
    betas = [0.2, 0.9, 3.0]
    best = RDCurve([gaussian_optimum(beta) for beta in betas])
    others = [RDPoint(beta, (p := gaussian_optimum(beta * 1.5)).rate, p.distortion) for beta in betas]
    assert (RDCurve(others).regret(best).per_beta > 0).all()


def test_regret_errors_cover_the_truth_in_simulation():
    rng = np.random.default_rng(0)
    betas, runs, covered = [0.5, 1.0, 2.0], 400, 0
    for _ in range(runs):
        curves = []
        for _ in range(2):
            points = []
            for beta in betas:
                x = rng.multivariate_normal([4.0, 8.0], [[1.0, -0.6], [-0.6, 1.0]], size=200)
                (r, d), (sr, sd) = x.mean(0), x.std(0, ddof=1) / 200**0.5
                loss = (x[:, 1] + beta * x[:, 0]).std(ddof=1) / 200**0.5
                points.append(RDPoint(beta, r, d, rate_stderr=sr, distortion_stderr=sd, loss_stderr=loss))
            curves.append(RDCurve(points))
        regret = curves[0].regret(curves[1])
        covered += abs(regret.mean) < 2 * regret.mean_stderr
    # Two standard errors cover 95.4 %; 400 trials scatter by 1 %.
    assert 0.92 < covered / runs < 0.985


def test_the_front_holds_the_points_that_no_other_beats():
    points = [(0.1, 5, 1), (0.2, 5, 2), (0.5, 4, 3), (1.0, 4.5, 3), (2.0, 1, 4), (4.0, 1, 4), (9.0, 0, 9)]
    curve = RDCurve([RDPoint(*point) for point in points])
    front = curve.pareto()
    assert front.betas.tolist() == [0.1, 0.5, 2.0, 4.0, 9.0]
    assert front.pareto() == front
    optima = RDCurve([gaussian_optimum(beta) for beta in (0.1, 0.4, 1.0, 2.0, 6.0)])
    assert optima.pareto() == optima


def test_interpolation_is_exact_on_lines_and_above_a_convex_curve():
    line = RDCurve([RDPoint(1.0, 4.0, 1.0), RDPoint(2.0, 1.0, 7.0), RDPoint(3.0, 3.9, 30.0)])
    assert line.interpolate(4.0) == 1.0
    assert line.interpolate(1) == 7.0
    assert line.interpolate(2.5) == pytest.approx(4.0)
    curve = RDCurve([gaussian_optimum(beta) for beta in np.geomspace(0.1, 8, 30)])
    for beta in (0.3, 1.1, 4.0):
        truth = gaussian_optimum(beta)
        assert truth.distortion <= curve.interpolate(truth.rate) <= truth.distortion + 0.1
    for outside in (0.5, 5, math.nan, "a"):
        with refused(f"rate must be within the Pareto front's, 1 to 4 nats; got {outside!r}"):
            line.interpolate(outside)


def points(rates, rate_of=None, shift=0.0):
    """A curve D = rate_of(R), its rates then raised by a shift."""
    rate_of = rate_of or (lambda rate: 10 * math.exp(-rate / 3))
    return RDCurve([RDPoint(i + 1.0, rate + shift, rate_of(rate)) for i, rate in enumerate(rates)])


def test_the_delta_rate_is_the_shift_of_a_curve_and_knows_no_beta():
    curve = points([8.0, 5.0, 2.0, 0.5, 0.0])
    assert curve.bd_rate(curve) == 0.0
    for shift in (0.7, -0.2):
        moved = points([8.0, 5.0, 2.0, 0.5, 0.0], shift=shift)
        assert moved.bd_rate(curve) == pytest.approx(shift, rel=1e-12)
        assert curve.bd_rate(moved) == pytest.approx(-shift, rel=1e-12)
    named = RDCurve([RDPoint(beta, point.rate, point.distortion) for beta, point in zip((3, 1, 9, 2, 5), curve, strict=True)])
    assert named.bd_rate(moved) == pytest.approx(0.2, rel=1e-12)


def test_the_delta_rate_of_lines_is_the_mean_over_the_distortions_of_both():
    # R = 8 − D over 1 to 7, less R = 5 − D/2 over 2 to 9: the mean of 3 − D/2 over 2 to 7.
    ours = points([7.0, 4.0, 1.0], lambda rate: 8 - rate)
    theirs = points([4.0, 2.0, 0.5], lambda rate: 10 - 2 * rate)
    assert ours.bd_rate(theirs) == pytest.approx(3 - (7**2 - 2**2) / 4 / 5, rel=1e-12)
    # Points that others beat, and points that are there twice, change nothing.
    more = RDCurve([*ours, RDPoint(7.0, 4.0, 4.0), RDPoint(8.0, 5.0, 6.0), RDPoint(9.0, 1.0, 7.0)])
    assert more.bd_rate(theirs) == pytest.approx(ours.bd_rate(theirs), rel=1e-12)


def test_other_points_of_one_curve_have_a_small_delta_rate():
    for count, most in ((5, 0.1), (9, 0.01)):
        one, two = points(np.linspace(0, 9, count)), points(np.linspace(0, 9, count + 1) ** 1.1)
        assert abs(one.bd_rate(two)) < most


def test_curves_without_a_common_range_of_distortions_have_no_delta_rate():
    near, far = points([2.0, 1.0], lambda rate: 5 - rate), points([2.0, 1.0], lambda rate: 9 - rate)
    touching, point = points([2.0, 1.0], lambda rate: 6 - rate), points([1.5], lambda rate: 5 - rate)
    for other, ends in ((far, "3 to 4 and 7 to 8"), (touching, "3 to 4 and 4 to 5"), (point, "3 to 4 and 3.5 to 3.5")):
        with refused(f"the Pareto fronts must have a range of distortions in common; they have {ends} nats"):
            near.bd_rate(other)
    with refused("a difference of rates is from another RDCurve, got 3"):
        near.bd_rate(3)


def test_the_envelope_holds_for_true_optima_to_the_last_bit_of_slack():
    """β₁ <= (D₂ − D₁)/(R₁ − R₂) <= β₂, and slopes that meet β as the βs draw together."""
    curve = RDCurve([gaussian_optimum(beta) for beta in np.geomspace(0.05, 9.9, 60)])
    check = curve.envelope()
    assert check.holds.all()
    assert (check.slack_lower > 0).all()
    assert (check.slack_upper > 0).all()
    assert ((check.lower < check.slopes) & (check.slopes < check.upper)).all()
    close = RDCurve([gaussian_optimum(beta) for beta in (1.0, 1.0001)]).envelope()
    assert close.slopes[0] == pytest.approx(1.00005, rel=1e-6)
    np.testing.assert_allclose(
        check.slack_lower, [b.loss(a.beta) - a.loss() for a, b in zip(curve, list(curve)[1:], strict=False)]
    )


def test_the_envelope_fails_for_a_bad_model_on_the_side_of_its_better_neighbour():
    good = [gaussian_optimum(beta) for beta in (0.5, 1.0, 2.0)]
    worse = RDPoint(1.0, good[1].rate, good[1].distortion + 1.0, distortion_stderr=0.3, rate_stderr=0.0)
    curve = RDCurve([good[0], worse, good[2]])
    check = curve.envelope(k=1)
    assert check.holds.tolist() == [False, False]
    assert check.slack_lower[0] > 0
    assert check.slack_upper[1] > 0
    assert check.slack_upper[0] == pytest.approx(good[0].loss(1.0) - worse.loss())
    assert check.slack_lower[1] == pytest.approx(good[2].loss(1.0) - worse.loss())
    # The good neighbours have no error of their own: it is unknown, and with it that of the pair.
    assert np.isnan(check.slack_upper_stderr[0])
    sure = [RDPoint(p.beta, p.rate, p.distortion, rate_stderr=0.0, distortion_stderr=0.0) for p in good]
    check = RDCurve([sure[0], worse, sure[2]]).envelope(k=1)
    assert check.slack_upper_stderr[0] == pytest.approx(0.3)
    assert not check.holds.any()
    assert RDCurve([sure[0], worse, sure[2]]).envelope(k=4).holds.all()


def test_the_envelope_of_collapsed_models_has_no_slope_and_no_slack():
    check = RDCurve([RDPoint(5.0, 0.0, 20.0), RDPoint(9.0, 0.0, 20.0)]).envelope()
    assert np.isnan(check.slopes).all()
    assert check.slack_lower.tolist() == check.slack_upper.tolist() == [0.0]
    assert check.holds.all()
    with refused("at least two points"):
        RDCurve([RDPoint(1, 1, 1)]).envelope()


@pytest.fixture
def awkward():
    """Floats with no short decimal form, the smallest and largest ones, missing values and errors."""
    return RDCurve(
        [
            RDPoint(0.1 + 0.2, math.pi, -1 / 3, 5e-324, 1e-17, 1.7976931348623157e308, math.nan, 3, 0.0),
            RDPoint(1e-2, 112.2, 47.5),
        ]
    )


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_storage_is_exact(awkward, kind, tmp_path):
    path = tmp_path / f"curve.{kind}"
    getattr(awkward, f"to_{kind}")(path)
    again = getattr(RDCurve, f"from_{kind}")(str(path))
    assert again == awkward
    assert repr(again) == repr(awkward)
    assert hash(again) == hash(awkward)
    assert again != RDCurve([RDPoint(1e-2, 112.2, 47.5)])


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_storage_keeps_the_runs_and_their_seeds(kind, tmp_path):
    curve = seeded_curve(RATES / 3, DISTORTIONS / 7, [4, 0, 9])
    mixed = RDCurve([*curve, RDPoint(7.0, 0.1, 9.0), RDPoint(9.0, 0.0, 9.0, n_runs=3), RDPoint(11.0, 0.0, 9.0, seed=2)])
    path = tmp_path / f"curve.{kind}"
    getattr(mixed, f"to_{kind}")(path)
    again = getattr(RDCurve, f"from_{kind}")(path)
    assert again == mixed
    assert repr(again) == repr(mixed)
    assert hash(again) == hash(mixed)
    pd.testing.assert_frame_equal(again.to_frame(), mixed.to_frame())
    assert [run.seed for run in again[0.5].runs] == [4, 0, 9]
    assert again != RDCurve([RDPoint(p.beta, p.rate, p.distortion) for p in mixed])
    # A table of another program's making: rows in any order.
    if kind == "csv":
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *rows[::-1]]))
        assert {run.seed for run in RDCurve.from_csv(path)[0.5].runs} == {4, 0, 9}
        path.write_text("\n".join([head, *rows[:3]]))  # a run is missing: nothing is guessed
        with refused("one point for each beta"):
            RDCurve.from_csv(path)


def test_the_json_is_standard_json(awkward, tmp_path):
    awkward.to_json(tmp_path / "curve.json")

    def forbidden(token):
        raise AssertionError(token)

    content = json.loads((tmp_path / "curve.json").read_text(), parse_constant=forbidden)
    assert content["points"][0]["mse"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no beta, rate, distortion; it has nothing"),
        ("beta,rate\n1,2\n", "has no distortion; it has beta, rate"),
        ("beta,rate,distortion,colour\n1,2,3,4\n", "unknown names colour"),
        ("beta,rate,distortion,rate\n1,2,3,4\n", "a name twice"),
        ("beta,rate,distortion\n1,2\n", "row 1: 2 values under 3 names"),
        ("beta,rate,distortion\n1,2,3\n2,two,3\n", "row 2: rate must be a number, got 'two'"),
        ("beta,rate,distortion\n-1,2,3\n", "row 1: beta must be a finite number > 0, got -1.0"),
        ("beta,rate,distortion,n_runs\n1,2,3,1.5\n", "row 1: n_runs must be a whole number, got '1.5'"),
        ("beta,rate,distortion\n", "at least one point"),
        ("beta,rate,distortion\n1,2,3\n1,3,4\n", "one point for each beta"),
        ('beta,rate,distortion\n1,2,"3\n', "is not a CSV file"),
    ],
)
def test_bad_csv_files_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "bad.csv").write_text(text)
    with refused(message):
        RDCurve.from_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", 'has no list "points" of objects'),
        ('{"unit": "nats", "points": [1]}', 'has no list "points" of objects'),
        ('{"unit": "bits", "points": []}', "has the unit 'bits', expected \"nats\""),
        ('{"unit": "nats", "points": []}', "at least one point"),
        ('{"unit": "nats", "points": [{"beta": 1}]}', "has no rate, distortion; it has beta"),
        ('{"unit": "nats", "points": [{"beta": 1, "rate": [], "distortion": 1}]}', "point 1: rate must be a number"),
        ('{"unit": "nats", "points": [{"beta": 1, "rate": null, "distortion": 1}]}', "rate must be a finite number"),
    ],
)
def test_bad_json_files_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with refused(message):
        RDCurve.from_json(tmp_path / "bad.json")


def test_files_that_are_missing_or_no_text_are_refused_in_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for read in (RDCurve.from_csv, RDCurve.from_json):
        with refused("no file", FileNotFoundError):
            read(tmp_path / "none")
        with refused("is not a text file"):
            read(tmp_path / "binary")
