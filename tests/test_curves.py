"""Curves: closed forms of regret, front, interpolation and envelope; exact storage; bad files refused in one line."""

import json
import math

import numpy as np
import pytest

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
