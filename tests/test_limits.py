"""Limits against sources whose R(D) is known: a coin, discrete ones, two points, Gaussians, and a mixture on a fine grid."""

import math

import numpy as np
import pytest
import torch
from errors import one_line

from nbvae import analytic, limits
from nbvae.limits import codebook, dual


def entropy(x):
    return -x * math.log(x) - (1 - x) * math.log(1 - x)


def normals(n, dims, seed):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- finite sources


@pytest.mark.parametrize("p", [0.5, 0.3, 0.01])
@pytest.mark.parametrize("beta", [0.05, 0.15, 0.5])
def test_a_coin_has_the_rate_of_the_textbook(p, beta):
    """R = h(p) − h(D), D = 1/(1 + e^(1/β)) while that is below min(p, 1 − p), and R = 0 beyond."""
    found = limits.blahut_arimoto([p, 1 - p], [[0, 1], [1, 0]], beta)
    distortion = min(1 / (1 + math.exp(1 / beta)), p)
    assert found.gap <= 1e-8
    assert found.distortion == pytest.approx(distortion, abs=1e-6)
    assert found.rate == pytest.approx(entropy(p) - entropy(distortion), abs=1e-6)


@pytest.mark.parametrize("m", [2, 5, 40])
@pytest.mark.parametrize("beta", [0.1, 0.4])
def test_equal_letters_have_the_rate_of_the_textbook(m, beta):
    """R = log m − h(D) − D log(m − 1), at D = (m − 1)/(m − 1 + e^(1/β))."""
    found = limits.blahut_arimoto(np.full(m, 1 / m), 1 - np.eye(m), beta)
    distortion = (m - 1) / (m - 1 + math.exp(1 / beta))
    assert found.distortion == pytest.approx(distortion, abs=1e-6)
    assert found.rate == pytest.approx(math.log(m) - entropy(distortion) - distortion * math.log(m - 1), abs=1e-6)


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
def test_two_points_under_squared_error_have_two_reproductions_whose_place_solves_one_equation(beta):
    """Of ±1 the reproductions are ±a, a = tanh(2a/β), the mean of x given y: 1 − D = a², R = log 2 − h((1 + a)/2)."""
    a = 1.0
    for _ in range(2000):
        a = math.tanh(2 * a / beta)
    places = np.r_[np.linspace(-1.5, 1.5, 200), a, -a]
    found = limits.blahut_arimoto([0.5, 0.5], (np.array([[-1.0], [1.0]]) - places) ** 2, beta)
    assert found.distortion == pytest.approx(1 - a**2, abs=1e-6)
    assert found.rate == pytest.approx(math.log(2) - entropy((1 + a) / 2), abs=1e-6)
    assert float(found.marginal[-2:].sum()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("beta", [0.02, 0.4, 2.4])
def test_a_normal_on_a_fine_grid_has_shannons_rate(beta):
    x = np.linspace(-7, 7, 281)
    p = np.exp(-(x**2) / 2)
    found = limits.blahut_arimoto(p / p.sum(), (x[:, None] - x) ** 2, beta)
    level = min(beta / 2, 1.0)
    assert found.gap <= 1e-8
    assert found.rate == pytest.approx(-0.5 * math.log(level), abs=1e-6)
    assert found.distortion == pytest.approx(level, abs=1e-6)


def test_the_gap_bounds_what_is_lacking_and_the_plain_turns_agree():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 2)), generator.standard_normal((90, 2))
    d, p = ((x[:, None] - y) ** 2).sum(-1), generator.dirichlet(np.ones(60))
    best = limits.blahut_arimoto(p, d, 0.3)
    assert best.gap <= 1e-8
    assert float(best.marginal.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(torch.from_numpy(p) @ best.channel, best.marginal)
    turns = analytic.blahut_arimoto(p, d, 0.3, tolerance=1e-4)
    least = best.rate + best.distortion / 0.3
    assert -1e-9 <= turns.rate + turns.distortion / 0.3 - least <= 1e-4
    for iterations in (1, 4, 16):
        early = limits.blahut_arimoto(p, d, 0.3, iterations=iterations)
        assert early.gap > 1e-8
        assert early.rate + early.distortion / 0.3 - least <= early.gap


def test_slopes_from_nearly_nothing_to_the_largest_and_outcomes_that_never_happen():
    d = np.abs(np.arange(4.0)[:, None] - np.arange(4.0))
    fine, coarse = (limits.blahut_arimoto([0.25] * 4, d, beta) for beta in (1e-4, 1e4))
    assert (fine.rate, fine.distortion) == (pytest.approx(math.log(4)), pytest.approx(0.0, abs=1e-12))
    assert (coarse.rate, coarse.distortion) == (pytest.approx(0.0, abs=1e-7), pytest.approx(1.0, abs=1e-4))
    some = limits.blahut_arimoto([0.5, 0.0, 0.5, 0.0], d, 0.4)
    fewer = limits.blahut_arimoto([0.5, 0.5], d[::2], 0.4)
    assert (some.rate, some.distortion) == (pytest.approx(fewer.rate), pytest.approx(fewer.distortion))
    assert limits.blahut_arimoto([1.0], [[2.0, 3.0]], 1.0).distortion == pytest.approx(2.0, abs=1e-8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p": [0.5, 0.6]}, "p must be probabilities that sum to 1"),
        ({"p": [1.5, -0.5]}, "p must be probabilities"),
        ({"p": [[0.5, 0.5]]}, "p must have the shape (any,)"),
        ({"p": [0.5, math.nan]}, "p must be finite"),
        ({"distortion": np.eye(3)}, "distortion must have the shape (2, any)"),
        ({"distortion": [[0, math.inf], [1, 0]]}, "distortion must be finite"),
        ({"distortion": np.zeros((2, 0))}, "distortion must have the shape"),
        ({"beta": 0.0}, "beta must be"),
        ({"tolerance": 0.0}, "tolerance must be"),
        ({"iterations": 0}, "iterations must be"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(change, said):
    one_line(lambda: limits.blahut_arimoto(**({"p": [0.5, 0.5], "distortion": np.eye(2), "beta": 1.0} | change)), said)


# ---------------------------------------------------------------- bounds on both sides


@pytest.mark.parametrize(("dims", "rate"), [(1, 0.5), (1, 4.0), (2, 4.0), (4, 4.0), (8, 1.0), (8, 4.0), (8, 8.0), (16, 4.0)])
def test_the_upper_bound_of_a_gaussian_is_above_shannon_and_near(dims, rate):
    """On the same examples: at the optimum D/β + R of x is R + ‖x‖²/2, whose mean is known."""
    x = normals(9000, dims, seed=dims)
    level = math.exp(-2 * rate / dims)
    found = limits.upper_bound(x[:6000], x[6000:], 2 * level, points=(10, 50), passes=20)
    own = found.nats.values - (rate + x[6000:].double().square().sum(1) / 2)
    excess = own.mean().item(), own.std().item() / math.sqrt(len(own))
    assert -3 * excess[1] <= excess[0] <= 0.05
    truth = analytic.gaussian_rate_distortion(np.ones(dims), found.distortion)
    assert found.rate >= truth - 4 * found.nats.stderr
    assert found.nats.value == pytest.approx(found.rate + found.distortion / found.beta)


def test_points_alone_are_above_shannon_and_need_to_be_many():
    x = normals(9000, 4, seed=0)
    level = math.exp(-2 * 2.0 / 4)
    few, many = (
        limits.upper_bound(x[:6000], x[6000:], 2 * level, points, passes=20, spread="none").nats.value for points in (30, 1000)
    )
    best = 2.0 + x[6000:].double().square().sum(1).mean().item() / 2
    assert few > best + 0.04
    assert best - 0.01 <= many <= best + 0.02


@pytest.mark.parametrize("full", [False, True])
def test_rates_and_distortions_are_those_of_the_channel_that_is_drawn_from(full):
    """Draw y from q(y|x) of a few Gaussian codes, and average."""
    x, wide = normals(4, 3, seed=1), torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0])
    maps = normals(15, 3, seed=5).reshape(5, 3, 3) if full else wide.sqrt()[:, None, None] * torch.eye(3)
    book = codebook.Book(normals(5, 3, seed=2), wide.log_softmax(0), (maps @ maps.mT).double() if full else wide)
    beta = 0.8
    rate, distortion = codebook.measured(codebook.DISTORTIONS["squared"], x, book, beta)
    generator = torch.Generator().manual_seed(3)
    code = torch.multinomial(book.log_w.exp(), 400_000, replacement=True, generator=generator)
    y = book.codes[code] + (maps[code] @ torch.randn(len(code), 3, 1, generator=generator)).squeeze(-1)
    d = (x[:, None] - y).square().sum(-1)
    weight = (-d / beta).exp()
    torch.testing.assert_close(distortion.values.float(), (weight * d).mean(1) / weight.mean(1), rtol=0.03, atol=0.02)
    nats = rate.values + distortion.values / beta
    torch.testing.assert_close(nats.float(), -weight.mean(1).log(), rtol=0.02, atol=0.02)


def test_one_gaussian_code_of_any_covariance_is_shannons_code_for_a_gaussian():
    """Water-filling: its covariance is what is left of the source's above the level."""
    scale = torch.tensor([2.0, 1.0, 0.3])
    x = normals(20_000, 3, seed=0) * scale
    found = limits.upper_bound(x[:10_000], x[10_000:], 0.4, points=1, spread="full", passes=30)
    rate, mse = analytic.gaussian_rd(scale.square().numpy(), 0.2)
    assert found.nats.value == pytest.approx(rate + mse / 0.4, abs=3 * found.nats.stderr)
    torch.testing.assert_close(found.spread[0].diagonal().float(), (scale.square() - 0.2).clamp(min=0), atol=0.1, rtol=0.05)
    round_one = limits.upper_bound(x[:10_000], x[10_000:], 0.4, points=1, spread="round")
    assert round_one.nats.value > found.nats.value + 0.2


@pytest.mark.parametrize(
    ("dims", "rate", "lack"), [(1, 1.0, 0.08), (2, 2.0, 0.3), (4, 2.0, 0.25), (8, 1.0, 0.25), (16, 1.0, 1.5)]
)
def test_the_lower_bound_of_a_gaussian_is_below_shannon(dims, rate, lack):
    draws = normals(26_000, dims, seed=10 + dims)
    level = math.exp(-2 * rate / dims)
    found = limits.lower_bound(draws[:6000], draws[6000:], 2 * level, points=1, starts=300, climbs=20)
    truth = rate + dims / 2
    assert truth - lack <= found.nats.value <= truth + 2 * found.nats.stderr
    assert found.nats.value <= truth  # it happens to be, by far more than its error
    assert found.at(dims * level) <= rate
    assert found.at(100.0 * dims) == 0
    assert found.nats.value <= math.log(20_000)  # whatever g is, no draw can count for more than one


def mixture(n, seed):
    """Two normals of deviation .3 about −1 and 1, the first with the probability .7."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.where(torch.rand(n, 1, generator=generator) < 0.7, -1.0, 1.0)
    return centre + 0.3 * torch.randn(n, 1, generator=generator)


@pytest.mark.parametrize("beta", [0.05, 0.15, 0.8])
def test_a_mixture_of_normals_is_between_its_bounds_and_near_both(beta):
    grid = np.linspace(-3, 3, 401)
    p = 0.7 * np.exp(-((grid + 1) ** 2) / 0.18) + 0.3 * np.exp(-((grid - 1) ** 2) / 0.18)
    exact = limits.blahut_arimoto(p / p.sum(), (grid[:, None] - grid) ** 2, beta)
    truth = exact.rate + exact.distortion / beta
    if beta == 0.05:  # below the normals' own variance Shannon's lower bound is met: R = h(x) − ½ log 2πeD, D = β/2
        density = p / p.sum() / (grid[1] - grid[0])
        h = -(p / p.sum() * np.log(density)).sum()
        assert exact.rate == pytest.approx(h - 0.5 * math.log(math.pi * math.e * beta), abs=1e-4)
        assert exact.distortion == pytest.approx(beta / 2, abs=1e-4)
    train, test = mixture(6000, seed=0), mixture(20_000, seed=1)
    above = limits.upper_bound(train, test, beta, points=(10, 50))
    below = limits.lower_bound(train, test, beta, points=(10, 50), starts=300)
    assert truth - 2 * above.nats.stderr <= above.nats.value <= truth + 0.03
    assert truth - 0.15 <= below.nats.value <= truth + 2 * below.nats.stderr


def test_the_largest_mean_that_is_found_is_that_of_a_fine_search():
    x, log_g = mixture(500, seed=3), torch.randn(500, generator=torch.Generator().manual_seed(4))
    where, log_c = dual._largest(x, log_g, x[:100], 0.1, climbs=50)
    grid = torch.linspace(-3, 3, 20_001)[:, None]
    means = (log_g - (grid - x.T).square() / 0.1).exp().mean(1)
    assert log_c == pytest.approx(float(means.log().max()), abs=1e-4)
    assert float(where) == pytest.approx(float(grid[means.argmax()]), abs=5e-3)


def test_the_bound_is_too_low_on_average_for_any_function_and_any_number_of_draws():
    """g is fixed and wrong, and C, known here, is estimated from few draws: the mean over many repetitions is below."""
    beta, log_g = 0.5, lambda x: 0.7 * x.square().sum(1) / 2
    # C = sup over y of E exp(.35 x² − (x − y)²/β), at y = 0: (1 − .7 + 2/β)^(−1/2)
    exact = 0.35 + 0.5 * math.log(1 - 0.7 + 2 / beta)
    values = []
    for seed in range(200):
        x = normals(30, 1, seed=seed)
        _, log_c = dual._largest(x, log_g(x), x, beta, climbs=20)
        values.append(log_g(x).mean().item() - math.exp(log_c) * math.sqrt(4.3) + 0.5 * math.log(4.3) + 1)
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert mean <= exact + 2 * error
    assert mean < exact - 0.05


# ---------------------------------------------------------------- images as they are


def stripes(n, seed):
    """Sixteen pixels, four patterns of equal probability, each pixel turned with the probability .05."""
    generator = torch.Generator().manual_seed(seed)
    patterns = (torch.arange(16) // torch.tensor([[1], [2], [4], [8]]) % 2).float()
    x = patterns[torch.randint(4, (n,), generator=generator)]
    return (x - (torch.rand(n, 16, generator=generator) < 0.05).float()).abs().reshape(n, 1, 4, 4)


def test_hamming_and_bernoulli_codebooks_find_the_patterns_of_images():
    train, test = stripes(2000, seed=0), stripes(1000, seed=1)
    beta = 1.0
    found = limits.upper_bound(train, test, beta, points=(4, 16, 100), distortion="hamming")
    assert found.codes.shape[1:] == (1, 4, 4)
    assert set(found.codes.unique().tolist()) <= {0.0, 1.0}
    # With the four patterns as codes: log 4 nats and .8 pixels, but for confusions; nothing is far below at this slope.
    assert found.nats.value <= math.log(4) + 16 * 0.05 / beta + 0.05
    likely = limits.upper_bound(train, test, beta, points=(4, 16), distortion="bernoulli")
    assert likely.nats.value == pytest.approx(math.log(4) + 16 * entropy(0.05), abs=0.15)  # the entropy of the source
    assert likely.nats.value >= math.log(4) + 16 * entropy(0.05) - 3 * likely.nats.stderr


def test_a_distortion_that_is_a_function_is_followed_by_its_gradient():
    x = normals(3000, 1, seed=0)

    def squared(x, y):
        return (x[:, None] - y[None]).square().flatten(2).sum(-1)

    named = limits.upper_bound(x[:1500], x[1500:], 0.5, points=30, spread="none")
    own = limits.upper_bound(x[:1500], x[1500:], 0.5, points=30, distortion=squared, step=0.02, passes=40)
    assert own.nats.value == pytest.approx(named.nats.value, abs=0.03)


def test_data_without_variance_cost_nothing():
    x = torch.full((50, 3), 2.0)
    above = limits.upper_bound(x, x[:10], 0.5, points=2)
    assert (above.rate, above.distortion) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6))
    below = limits.lower_bound(x, x[:10], 0.5, points=1)
    assert below.nats.value == pytest.approx(0.0, abs=1e-4)


def test_the_same_seed_gives_the_same_bounds_and_torchs_stream_is_left_alone():
    x = normals(600, 2, seed=0)
    before = torch.get_rng_state()
    first, again = (limits.upper_bound(x[:400], x[400:], 0.5, points=20, seed=1).nats.value for _ in range(2))
    low, low_again = (limits.lower_bound(x[:400], x[400:], 0.5, points=5, seed=1).nats.value for _ in range(2))
    assert (first, low) == (again, low_again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bound", [limits.upper_bound, limits.lower_bound])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": np.zeros((9, 2))}, "train must be a torch tensor of examples"),
        ({"test": torch.zeros(9, 3)}, "test must be examples (N, *shape) like those of train"),
        ({"test": torch.zeros(1, 2)}, "test must have at least 2 examples"),
        ({"test": torch.full((9, 2), math.nan)}, "test must hold finite real numbers"),
        ({"train": torch.zeros(9)}, "train must be examples (N, *shape)"),
        ({"validation": torch.zeros(9, 3)}, "validation must be examples"),
        ({"beta": 0.0}, "beta must be"),
        ({"points": 0}, "points must be"),
        ({"points": 50}, "points must be at most the 16 examples"),
        ({"passes": 0}, "passes must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bounds_refuse_in_one_line(bound, change, said):
    given = {"train": torch.rand(20, 2), "test": torch.rand(20, 2), "beta": 1.0, "points": 2, "passes": 2}
    one_line(lambda: bound(**(given | change)), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distortion": "mse"}, "distortion must be one of squared, bernoulli, hamming"),
        ({"distortion": "hamming"}, "train must be 0 or 1"),
        ({"distortion": "bernoulli", "test": torch.full((5, 2), 2.0)}, "test must be in [0, 1]"),
        ({"distortion": "bernoulli", "spread": "round"}, "spread='round' needs distortion='squared'"),
        ({"distortion": lambda x, y: x[:1, :1]}, "distortion(x, y) must give finite numbers (16, 2)"),
        ({"distortion": lambda x, y: x[:, :1] + 0 * y[:, 0].detach()}, "distortion(x, y) must have a gradient in y"),
        ({"spread": True}, "spread must be one of none, round, full"),
        ({"step": 0.0}, "step must be"),
    ],
)
def test_a_distortion_that_does_not_fit_is_refused_in_one_line(change, said):
    given = {"train": torch.rand(20, 2), "test": torch.rand(20, 2), "beta": 1.0, "points": 2, "passes": 2}
    one_line(lambda: limits.upper_bound(**(given | change)), said)


@pytest.mark.parametrize(("change", "said"), [({"starts": 0}, "starts must be"), ({"climbs": 0}, "climbs must be")])
def test_a_search_that_is_none_is_refused_in_one_line(change, said):
    one_line(lambda: limits.lower_bound(torch.rand(20, 2), torch.rand(20, 2), 1.0, points=2, **change), said)
