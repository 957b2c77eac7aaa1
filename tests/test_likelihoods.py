import math

import numpy as np
import pytest
import torch
from errors import one_line
from scipy import special, stats

from nbvae import data, models, objectives, training
from nbvae.models import likelihoods
from nbvae.training import calibration


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 0.7, 12.0])
def test_bernoulli_sums_to_one_over_its_support(logit):
    p = likelihoods.make("bernoulli", (1,))(torch.full((1, 1), logit, dtype=torch.float64))
    total = sum(p.log_prob(torch.full((1, 1), value, dtype=torch.float64)).exp().item() for value in (0.0, 1.0))
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_gaussian_integrates_to_one(sigma):
    grid = torch.linspace(-30 * sigma, 30 * sigma, 20001, dtype=torch.float64)
    p = likelihoods.make("gaussian", (1,), sigma).double()(torch.full((1,), 0.4 * sigma, dtype=torch.float64))
    assert torch.trapezoid(p.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-9)


def test_log_prob_sums_over_dimensions_in_nats():
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    output = torch.randn(5, 16, dtype=torch.float64)
    gaussian = likelihoods.make("gaussian", (1, 4, 4), 0.3).double()(output).log_prob(x)
    mse = (x.flatten(1) - output).square().sum(-1)
    for value, squared in zip(gaussian, mse, strict=True):  # 0.3 is not exact in the float32 buffer
        assert -value.item() == pytest.approx(likelihoods.gaussian_distortion(squared.item(), 0.09, 16), rel=1e-6)
    bits = (x > 0.5).double()
    by_hand = (bits.flatten(1) * output - torch.log1p(output.exp())).sum(-1)
    torch.testing.assert_close(likelihoods.make("bernoulli", (1, 4, 4))(output).log_prob(bits), by_hand)


def test_gaussian_distortion_is_least_at_sigma2_of_mse_over_n():
    best = likelihoods.gaussian_distortion(3.2, 0.2, 16)
    assert best == pytest.approx(8 * (math.log(2 * math.pi * 0.2) + 1))
    assert best < min(likelihoods.gaussian_distortion(3.2, s, 16) for s in (0.19, 0.21))


def test_support():
    bernoulli, gaussian = likelihoods.make("bernoulli", (2,)), likelihoods.make("gaussian", (2,), 1.0)
    bernoulli.check(torch.tensor([[0.0, 1.0]]))
    for bad in ([[0.5, 1.0]], [[0.0, 2.0]], [[math.nan, 1.0]]):
        with pytest.raises(ValueError, match="binarize"):
            bernoulli.check(torch.tensor(bad))
    gaussian.check(torch.tensor([[0.5, -3.0]]))
    with pytest.raises(ValueError, match="finite"):
        gaussian.check(torch.tensor([[math.inf, 0.0]]))


@pytest.mark.parametrize(
    ("name", "sigma", "message"),
    [
        ("poisson", None, "bernoulli, gaussian"),
        ("gaussian", 0.0, "sigma must be"),
        ("gaussian", -1.0, "sigma must be"),
        ("gaussian", math.inf, "sigma must be"),
        ("gaussian", "wide", "sigma must be"),
        ("bernoulli", 0.3, "has none"),
    ],
)
def test_bad_input(name, sigma, message):
    one_line(lambda: likelihoods.make(name, (2,), sigma), message)


# Densities and masses.


@pytest.mark.parametrize("mode", ["fixed", *likelihoods.SIGMAS])
def test_a_gaussian_integrates_to_one_in_each_mode(mode):
    """In one dimension on a grid, in two on the product of two; σ where its mode puts it."""
    sigma = 0.6 if mode == "fixed" else mode
    for n in (1, 2):
        likelihood = likelihoods.make("gaussian", (n,), sigma).double()
        output = torch.linspace(-0.7, 0.4, likelihood.n_outputs, dtype=torch.float64)
        if mode != "fixed":
            likelihood.set_variance(torch.tensor(0.3))
        grid = torch.linspace(-9, 9, 401, dtype=torch.float64)
        x = torch.cartesian_prod(*[grid] * n).reshape(-1, n)
        total = likelihood(output).log_prob(x).exp().sum().item() * (grid[1] - grid[0]).item() ** n
        assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "logits"),
    [
        (torch.float64, 1e-8, [-12.0, -3.0, -0.5, -1e-2, -1e-3, -1e-6, 0.0, 1e-9, 1e-4, 0.02, 0.1, 1.0, 12.0]),
        (torch.float32, 1e-4, [-10.0, -3.0, -1e-2, -1e-4, 0.0, 1e-6, 0.02, 1.0, 8.0]),
        (torch.float64, 1e-6, [-200.0, -60.0, 60.0]),
        (torch.float32, 1e-4, [-20.0, 12.0, 40.0]),
    ],
)
def test_continuous_bernoulli_integrates_to_one_over_the_unit_interval(dtype, tolerance, logits):
    grid = torch.linspace(0, 1, 100_001, dtype=dtype)
    for logit in logits:
        p = likelihoods.make("continuous_bernoulli", (1,))(torch.full((1,), logit, dtype=dtype))
        density = p.log_prob(grid[:, None]).double().exp()
        assert torch.trapezoid(density, grid.double()).item() == pytest.approx(1, abs=tolerance), logit
        mean = torch.trapezoid(density * grid, grid.double()).item()
        assert p.mean.item() == pytest.approx(mean, abs=max(tolerance, 5e-4 * (dtype == torch.float32)))


def test_continuous_bernoulli_moments_draws_and_gradients():
    logits = torch.tensor([-150.0, -30.0, -2.0, -0.05, 0.0, 0.099, 0.101, 5.0, 80.0], dtype=torch.float64, requires_grad=True)
    p = likelihoods.OnUnitInterval(logits)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    density = p.log_prob(grid).exp()
    first, second = (torch.trapezoid(density * grid**power, grid, dim=0) for power in (1, 2))
    torch.testing.assert_close(p.mean, first, atol=1e-7, rtol=0)
    torch.testing.assert_close(p.variance, second - first**2, atol=1e-7, rtol=0)
    draws = p.sample((100_000,))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert ((draws.mean(0) - p.mean).abs() < 5 * (p.variance / 100_000).sqrt()).all()
    assert ((draws.var(0) / p.variance - 1).abs() < 0.05).all()
    # d/dλ log p = x − E x, the identity of an exponential family.
    x = torch.full_like(logits, 0.3)
    (gradient,) = torch.autograd.grad(p.log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, x - 0.5 - (p.mean - 0.5), atol=1e-7, rtol=0)
    # Near 0 also in float32, where torch's own is a third off.
    near = torch.tensor([0.01], requires_grad=True)
    (gradient,) = torch.autograd.grad(likelihoods.OnUnitInterval(near).log_prob(torch.tensor([0.5])).sum(), near)
    assert gradient.item() == pytest.approx(-0.01 / 12, rel=1e-4)


def test_continuous_bernoulli_is_the_bernoulli_formula_times_its_normaliser():
    """log p = λx − log((e^λ − 1)/λ): more than the Bernoulli's by log C(λ) >= log 2."""
    logits = torch.tensor([-4.0, -0.3, 0.8, 6.0], dtype=torch.float64)
    x = torch.rand(30, 4, dtype=torch.float64)
    got = likelihoods.make("continuous_bernoulli", (4,))(logits).log_prob(x)
    by_hand = (x * logits - (logits.expm1() / logits).log()).sum(-1)
    torch.testing.assert_close(got, by_hand)
    assert (got - likelihoods.make("bernoulli", (4,))(logits).log_prob(x) >= 4 * math.log(2) - 1e-12).all()


KINDS = ("gaussian", "logistic")
SCALES = (1e-3, 0.02, 0.3, 10.0)
LOCATIONS = (-50.0, -0.4, 0.0, 0.031, 0.5, 1.0, 3.0)


def grid_of(levels, dtype=torch.float64):
    return torch.arange(levels, dtype=dtype) / (levels - 1)


def crossed(kind, levels, dtype=torch.float64, scales=SCALES, locations=LOCATIONS):
    """The mass at every location (L, 1, 1) and scale (S, 1), to be asked for every level."""
    location = torch.tensor(locations, dtype=dtype)[:, None, None].requires_grad_()
    scale = torch.tensor(scales, dtype=dtype)[:, None].requires_grad_()
    return likelihoods.OnLevels(location, scale, levels, kind), location, scale


def log_mass(kind, levels, location, scale):
    """By scipy: the log of a difference of distribution functions, on the side where it is not lost."""
    law = stats.norm(location, scale) if kind == "gaussian" else stats.logistic(location, scale * math.sqrt(3) / math.pi)
    step, x = 1 / (levels - 1), np.arange(levels) / (levels - 1)
    lower, upper = np.where(x < step / 2, -np.inf, x - step / 2), np.where(x > 1 - step / 2, np.inf, x + step / 2)
    right = lower + upper > 2 * location
    right[0], right[-1] = False, True
    ends = np.where(right, [law.logsf(lower), law.logsf(upper)], [law.logcdf(upper), law.logcdf(lower)])
    with np.errstate(divide="ignore"):
        return ends[0] + np.log(-np.expm1(ends[1] - ends[0]))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_discretized_masses_sum_to_one(kind, levels):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        total = crossed(kind, levels, dtype)[0].log_prob(grid_of(levels, dtype)).exp().sum(-1)
        assert (total - 1).abs().max() < tolerance


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_discretized_log_prob_is_the_log_of_differences_of_distribution_functions(kind, levels):
    """Also where the mass itself is zero in any floating-point format: logs down to −10⁹."""
    got = crossed(kind, levels)[0].log_prob(grid_of(levels)).detach().numpy()
    for i, location in enumerate(LOCATIONS):
        for j, scale in enumerate(SCALES):
            assert got[i, j] == pytest.approx(log_mass(kind, levels, location, scale), rel=1e-9, abs=1e-9)
    assert got.min() < -1e4
    assert got.max() <= 0


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_discretized_gradients_are_finite_and_those_of_finite_differences(kind, levels):
    x = grid_of(levels)

    def total(location, scale):
        return likelihoods.OnLevels(location, scale, levels, kind).log_prob(x)

    _, location, scale = crossed(kind, levels)
    location, scale = (each.detach().expand(len(LOCATIONS), len(SCALES), levels).clone() for each in (location, scale))
    location.requires_grad_(), scale.requires_grad_()
    gradients = torch.autograd.grad(total(location, scale).sum(), (location, scale))
    with torch.no_grad():
        step = 1e-5 * scale
        for gradient, (a, b) in zip(gradients, ((step, 0), (0, step)), strict=True):
            slope = (total(location + a, scale + b) - total(location - a, scale - b)) / (2 * step)
            assert gradient.isfinite().all()
            # What cancels in the difference is round-off of the value, and of the location where that is large.
            noise = 1e-15 * (total(location, scale).abs() + location.abs() / scale * (1 + slope.abs() * scale)) / step
            assert ((gradient - slope).abs() <= 1e-6 * slope.abs() + 10 * noise + 1e-7 / scale).all()


@pytest.mark.parametrize(
    ("kind", "locations"),
    [
        ("gaussian", (0.4, 0.5)),
        ("logistic", (-10.0, -0.4, 0.5, 10.0)),
        ("gaussian", (-50.0, -3.0, -0.4, 10.0)),
    ],
)
def test_discretized_gradients_in_float32_are_those_in_float64(kind, locations):
    results = []
    for dtype in (torch.float64, torch.float32):
        _, location, scale = crossed(kind, 17, dtype, (1e-3, 1.0), locations)
        both = [each.detach().expand(len(locations), 2, 17).clone().requires_grad_() for each in (location, scale)]
        p = likelihoods.OnLevels(*both, 17, kind)
        results.append(torch.autograd.grad(p.log_prob(grid_of(17, dtype)).sum(), both))
    for exact, single in zip(*results, strict=True):  # for each level: in the sum of all they may cancel
        torch.testing.assert_close(single.double(), exact, rtol=0.02, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_discretized_moments_are_sums_over_the_levels_and_samples_are_levels(kind):
    for levels in (2, 17, 256):
        p, *_ = crossed(kind, levels)
        x, mass = grid_of(levels), p.log_prob(grid_of(levels)).exp()
        mean = (mass * x).sum(-1, keepdim=True)
        torch.testing.assert_close(p.mean, mean, atol=1e-11, rtol=0)
        torch.testing.assert_close(p.variance, (mass * (x - mean) ** 2).sum(-1, keepdim=True), atol=1e-11, rtol=0)
    p, *_ = crossed(kind, 5, scales=(0.05, 0.3, 2.0), locations=(-0.4, 0.43, 0.8))
    draws, mass = p.sample((20_000,)), p.log_prob(grid_of(5)).exp()
    assert not draws.requires_grad
    assert ((draws * 4).round() == draws * 4).all()
    frequency = torch.stack([(draws == level).double().mean(0).squeeze(-1) for level in grid_of(5)], -1)
    error = (mass * (1 - mass) / 20_000).sqrt()
    assert ((frequency - mass).abs() <= 5 * error + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mass_of_a_small_bin_is_density_times_width(kind):
    """To second order in the width: a tenth of it has a hundredth of the error."""
    location, scale = 0.43, 0.2
    law = stats.norm(location, scale) if kind == "gaussian" else stats.logistic(location, scale * math.sqrt(3) / math.pi)
    x = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    errors = []
    for bins in (10, 100, 1000):
        p = likelihoods.OnLevels(torch.tensor(location, dtype=torch.float64), torch.tensor(scale).double(), bins + 1, kind)
        errors.append(abs(p.log_prob(x).numpy() - law.logpdf(x) - math.log(1 / bins)).max())
    assert errors[2] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.1)


def test_discretized_likelihoods_are_their_gaussian_in_bins():
    """The modules, the view `Discretized` and `OnLevels` are one mass; the logistic has σ for its standard deviation."""
    model = models.VAE((3, 2), 4, likelihood="gaussian", sigma="z_diag").double()
    z, x = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 17, (7, 3, 2)).double() / 16
    module = likelihoods.make("discretized_gaussian", (3, 2), "z_diag", 17).double()(model.decoder(z))
    torch.testing.assert_close(models.Discretized(model, 17).likelihood(z).log_prob(x), module.log_prob(x))
    base = model.likelihood(z).base_dist
    assert torch.equal(likelihoods.OnLevels(base.loc, base.scale, 17).log_prob(x).sum((1, 2)), module.log_prob(x))
    fine = likelihoods.OnLevels(torch.tensor(0.5).double(), torch.tensor(0.02).double(), 2001, "logistic")
    assert fine.stddev.item() == pytest.approx(0.02, rel=1e-3)


# The scale and its floor.


def test_above_the_floor_nothing_is_changed():
    """Value and gradient of −log N are, by hand and without a floor, the same to the last bits, in each learned mode."""
    x, n = torch.randn(9, 5, dtype=torch.float64), 5
    for mode in ("global", "z", "z_diag"):
        likelihood = likelihoods.make("gaussian", (n,), mode).double()
        likelihood.set_variance(torch.tensor(0.2))
        output = torch.randn(9, likelihood.n_outputs, dtype=torch.float64, requires_grad=True)
        learned = likelihood.log_ratio if mode == "global" else output
        with torch.no_grad():
            output[0, n:] = -12.0  # σ² = 1.2e-6, just above 1e-6
        got = -likelihood(output).log_prob(x).sum()
        ratio = 10 * likelihood.log_ratio if mode == "global" else output[:, n:]
        variance = likelihood.variance * ratio.exp()
        by_hand = 0.5 * ((2 * math.pi * variance).log() + (x - output[:, :n]) ** 2 / variance).sum()
        assert variance.min() > likelihoods.FLOOR**2
        assert got.item() == pytest.approx(by_hand.item(), rel=1e-12)
        a, b = (torch.autograd.grad(value, (output, learned)) for value in (got, by_hand))
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", ["global", "z", "z_diag"])
def test_on_the_floor_gradients_pass_upward_only(mode):
    """σ is `FLOOR` exactly below it; errors above it pull it up with the gradient that they have there, smaller ones not."""
    likelihood = likelihoods.make("gaussian", (4,), mode).double()
    likelihood.set_variance(torch.tensor(1e-6))
    for error, pulled in ((0.5, True), (1.1e-3, True), (0.9e-3, False), (0.0, False)):
        output = torch.zeros(1, likelihood.n_outputs, dtype=torch.float64)
        output[:, 4:] = -5.0
        output.requires_grad_()
        if mode == "global":
            likelihood.log_ratio.data.fill_(-0.5)
        p = likelihood(output)
        torch.testing.assert_close(p.stddev, torch.full((1, 4), likelihoods.FLOOR).double(), rtol=1e-6, atol=0)
        loss = -p.log_prob(torch.full((1, 4), error, dtype=torch.float64))
        learned = likelihood.log_ratio if mode == "global" else output
        gradient = torch.autograd.grad(loss.sum(), learned)[0]
        if mode == "global":
            gradient = gradient / 10
        slope = 0.5 * 4 * (1 - (error / likelihoods.FLOOR) ** 2)  # of the loss in log σ²
        total = gradient.sum().item() if mode == "global" else gradient[:, 4:].sum().item()
        assert total == (pytest.approx(slope, rel=1e-5) if pulled else 0)


def test_set_variance_keeps_to_the_floor_and_scale_says_where_it_has_none():
    likelihood = likelihoods.make("gaussian", (2, 3), "optimal")
    for variance, sigma in ((0.25, 0.5), (0.0, likelihoods.FLOOR)):
        likelihood.set_variance(torch.tensor(variance))
        assert likelihood.scale.shape == (1, 1)
        assert likelihood.scale.item() == pytest.approx(sigma)
    for mode in ("z", "z_diag"):
        one_line(lambda mode=mode: likelihoods.make("gaussian", (2,), mode).scale, "depends on z")


@pytest.mark.parametrize(("mode", "outputs"), [(0.3, 6), ("global", 6), ("optimal", 6), ("z", 7), ("z_diag", 12)])
def test_outputs_and_shapes_of_each_mode(mode, outputs):
    likelihood = likelihoods.make("gaussian", (2, 3), mode)
    assert likelihood.n_outputs == outputs
    p = likelihood(torch.randn(5, 4, outputs))
    assert (p.batch_shape, p.event_shape) == ((5, 4), (2, 3))
    scales = p.stddev.flatten(-2)
    assert torch.equal(scales, scales[..., :1].expand_as(scales)) == (mode != "z_diag")
    assert (scales.flatten().unique().numel() > 1) == (mode in ("z", "z_diag"))


# The log-MSE score.


def constant_mean(centre):
    """A VAE that decodes every z to `centre`, with a σ = 1 that the score must not see."""
    model = models.VAE((len(centre),), 1, "linear", "gaussian", sigma=1.0).double()
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.decoder[0].bias.copy_(torch.as_tensor(centre, dtype=torch.float64))
    return model


@torch.no_grad()
def score(model, x):
    return objectives.LogMSE()(model, x).terms.distortion


def test_the_log_mse_score_does_not_integrate_over_x():
    """exp(−score) = (n/2πe)^{n/2}/rⁿ: each doubling of the region adds the same S_n(n/2πe)^{n/2} log 2, for ever."""
    one, two = constant_mean([0.0]), constant_mean([0.0, 0.0])
    integrals = []
    for radius in (10.0, 100.0, 1000.0, 10_000.0):
        x = torch.logspace(-1, math.log10(radius), 4001, dtype=torch.float64)
        integrals.append(2 * torch.trapezoid((-score(one, x[:, None])).exp(), x).item())
    rise = 2 / math.sqrt(2 * math.pi * math.e) * math.log(10)
    assert np.diff(integrals) == pytest.approx([rise] * 3, rel=1e-5)
    assert integrals[0] == pytest.approx(2 * rise, rel=1e-5)
    assert integrals[-1] > 2  # a density has at most 1 left outside a ball
    totals = []
    for side in (1.0, 2.0, 4.0):  # midpoints of a grid, without the disk of radius 0.2
        grid = (torch.arange(800, dtype=torch.float64) + 0.5) / 400 * side - side
        x = torch.cartesian_prod(grid, grid)
        density = (-score(two, x)).exp()
        totals.append(density[x.norm(dim=-1) > 0.2].sum().item() * (side / 400) ** 2)
    assert np.diff(totals) == pytest.approx([2 / math.e * math.log(2)] * 2, rel=5e-3)
    for n in (3, 10):  # radially: the score depends on r alone
        model, r = constant_mean([0.0] * n), torch.logspace(-1, 2, 3001, dtype=torch.float64)
        direction = torch.nn.functional.normalize(torch.randn(n, dtype=torch.float64), dim=0)
        log_sphere = math.log(2) + n / 2 * math.log(math.pi) - special.gammaln(n / 2)
        shells = (log_sphere + (n - 1) * r.log() - score(model, r[:, None] * direction)).exp()
        rise = math.exp(log_sphere + n / 2 * math.log(n / (2 * math.pi * math.e))) * math.log(1000)
        assert torch.trapezoid(shells, r).item() == pytest.approx(rise, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_log_mse_score_is_below_every_isotropic_gaussian_with_its_mean(n):
    """By n/2 (q − 1 − log q) with q = MSE_i/nσ², so that they meet at σ² = MSE_i/n alone."""
    centre, x = torch.randn(n, dtype=torch.float64), torch.randn(40, n, dtype=torch.float64)
    own = (x - centre).square().mean(-1)
    value = score(constant_mean(centre), x)
    for factor in (0.01, 0.5, 0.99, 1.0, 1.01, 2.0, 100.0):
        variance = (own * factor)[:, None]
        gaussian = -torch.distributions.Normal(centre, variance.sqrt()).log_prob(x).sum(-1)
        gap = n / 2 * (1 / factor - 1 + math.log(factor))
        torch.testing.assert_close(gaussian - value, torch.full_like(value, gap), atol=1e-10, rtol=1e-10)
        assert (gap > 0) == (factor != 1)
    for sigma2 in (0.1, 1.0, 5.0):
        gaussian = -torch.distributions.Normal(centre, math.sqrt(sigma2)).log_prob(x).sum(-1)
        assert (value <= gaussian + 1e-12).all()


def test_the_gradient_of_the_log_mse_score_is_that_of_a_gaussian_at_its_own_detached_sigma():
    """The envelope: at σ_i² = MSE_i/n the loss does not move with σ_i. For all weights of a network, and any β."""
    model = models.VAE((6,), 2, likelihood="gaussian", hidden=(8,)).double()
    x, parts = torch.randn(30, 6, dtype=torch.float64), []
    torch.manual_seed(3)
    loss = objectives.LogMSE(0.7)(model, x)
    parts.append(torch.autograd.grad(loss.total, [p for p in model.parameters() if p.requires_grad]))
    torch.manual_seed(3)
    posterior = model.posterior(x)
    mean = model.decoder(posterior.rsample())
    sigma = (x - mean).square().mean(-1, keepdim=True).sqrt().detach()
    nll = -torch.distributions.Normal(mean, sigma).log_prob(x).sum(-1)
    rate = torch.distributions.kl_divergence(posterior, model.prior())
    parts.append(torch.autograd.grad(nll.mean() + 0.7 * rate.mean(), list(model.parameters())))
    torch.testing.assert_close(loss.terms.distortion, nll)
    assert any(gradient.abs().max() > 0.1 for gradient in parts[0])
    for a, b in zip(*parts, strict=True):
        torch.testing.assert_close(a, b)


def test_the_log_mse_score_of_an_exact_example_is_that_of_the_gaussian_on_the_floor():
    """Below the floor the score is −log N at σ = floor, and so still the least of all allowed σ, with its gradient."""
    model, least = constant_mean([0.3, 0.6]), math.log(2 * math.pi * likelihoods.FLOOR**2)
    value = score(model, torch.tensor([[0.3, 0.6], [0.3, 0.6 + 2e-3]], dtype=torch.float64))
    assert value[0].item() == pytest.approx(least)
    near = torch.tensor([[0.3, 0.6 + 5e-4]], dtype=torch.float64, requires_grad=True)
    at_floor = torch.distributions.Normal(torch.tensor([0.3, 0.6], dtype=torch.float64), likelihoods.FLOOR)
    gaussian = torch.distributions.Independent(at_floor, 1)
    assert score(model, near).item() == pytest.approx(-gaussian.log_prob(near).item(), rel=1e-9)
    loss = objectives.LogMSE()(model, near).terms.distortion
    slopes = [torch.autograd.grad(of.sum(), near)[0] for of in (loss, -gaussian.log_prob(near))]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=0)
    assert value[1].item() == pytest.approx(math.log(2 * math.pi * 2e-6) + 1)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gaussian", "sigma": math.nan}, "sigma must be a finite number > 0"),
        ({"name": "gaussian", "sigma": True}, "sigma must be"),
        ({"name": "gaussian", "sigma": "wide"}, "global, optimal, z, z_diag"),
        ({"name": "gaussian", "sigma": "fixed"}, "global, optimal, z, z_diag"),
        ({"name": "discretized_gaussian", "sigma": "wide"}, "global, z, z_diag"),
        ({"name": "discretized_logistic", "sigma": 0}, "sigma must be"),
        ({"name": "discretized_gaussian", "sigma": "optimal"}, "belongs to likelihood='gaussian'"),
        ({"name": "discretized_logistic", "sigma": "optimal"}, "belongs to likelihood='gaussian'"),
        ({"name": "bernoulli", "sigma": "global"}, "sigma belongs to .*'gaussian'.* has none"),
        ({"name": "continuous_bernoulli", "sigma": 0.1}, "sigma belongs to .* has none"),
        ({"name": "gaussian", "levels": 256}, "levels belongs to .*'discretized_gaussian'.* has none"),
        ({"name": "bernoulli", "levels": 2}, "levels belongs to .* has none"),
        ({"name": "discretized_gaussian", "levels": 1}, "levels must be a whole number >= 2"),
        ({"name": "discretized_logistic", "levels": 2.5}, "levels must be"),
        ({"name": "Gaussian"}, "bernoulli, continuous_bernoulli, gaussian, discretized_gaussian, discretized_logistic"),
    ],
)
def test_bad_options(options, message):
    one_line(lambda: likelihoods.make(options["name"], (2,), options.get("sigma"), options.get("levels")), match=message)
    settings = {"likelihood": options["name"], **{key: value for key, value in options.items() if key != "name"}}
    one_line(lambda: models.VAE((2,), **settings), match=message)


def test_data_that_a_likelihood_is_none_for_are_refused_before_training():
    digits = data.load("digits", binarize=None)
    wide = data.Dataset("wide", *(2 * getattr(digits, split) for split in data.SPLITS))
    config = training.TrainConfig(epochs=1, batch_size=600)

    def fit(dataset, likelihood, levels=None):
        model = models.VAE((1, 8, 8), 2, likelihood=likelihood, levels=levels, hidden=(4,))
        return training.fit(model, dataset, objectives.VAE(), config)

    one_line(lambda: fit(digits, "bernoulli"), "binarize")
    one_line(lambda: fit(wide, "continuous_bernoulli"), "[0, 1]")
    for kind in ("discretized_gaussian", "discretized_logistic"):
        one_line(lambda kind=kind: fit(digits, kind), "levels=256 needs values j/255")
        one_line(lambda kind=kind: fit(digits, kind, 16), "levels=16 needs values j/15")
        one_line(lambda kind=kind: fit(wide, kind, 17), "j/16 in [0, 1]")
        assert min(fit(digits, kind, 17).history["distortion"]) > 0
    fit(wide, "gaussian")
    fit(digits, "continuous_bernoulli")
    for levels in (2, 17, 256, 1000):  # what float32 makes of the levels passes
        likelihoods.make("discretized_gaussian", (levels,), levels=levels).check(grid_of(levels, torch.float32)[None])
    for bad in (math.nan, -1 / 16, 17 / 16, 0.5 + 1 / 32):
        one_line(
            lambda bad=bad: likelihoods.make("discretized_logistic", (1,), levels=17).check(torch.tensor([[bad]])), "levels"
        )


def test_what_cannot_be_calibrated_discretized_or_weighed_is_refused():
    x = torch.rand(5, 3)
    for model in (
        models.VAE((3,), likelihood="bernoulli"),
        models.VAE((3,), likelihood="discretized_gaussian", sigma=0.3),
        models.Discretized(models.VAE((3,), likelihood="gaussian", sigma="global"), 2),
    ):
        one_line(lambda model=model: calibration.calibrate(model, torch.ones(5, 3)), "only the sigma of a gaussian likelihood")
    one_line(lambda: calibration.calibrate(models.VAE((3,), likelihood="gaussian", sigma="z"), x), "depends on z")
    model = models.VAE((3,), likelihood="gaussian", sigma="global")
    for bad, message in (
        (x[:0], "at least 1 example"),
        (x * math.nan, "finite"),
        (x.numpy(), "torch tensor"),
        (x[:, :2], "for examples of shape"),
    ):
        one_line(lambda bad=bad: calibration.calibrate(model, bad), message)
    assert model.observation.scale.item() == 1
    run = training.Run(model, objectives.VAE(), training.TrainConfig(), {}, 0.0)
    one_line(lambda: calibration.calibrate(run, x), "pass its .model")
    one_line(lambda: models.Discretized(models.VAE((3,), likelihood="bernoulli")), "only a model with a gaussian likelihood")
    one_line(lambda: models.Discretized(models.VAE((3,), likelihood="gaussian"), levels=1), "levels must be")
    one_line(lambda: likelihoods.OnLevels(x, x, 4, "cauchy"), "gaussian, logistic")
    one_line(lambda: objectives.LogMSE()(models.VAE((3,), likelihood="continuous_bernoulli"), x), "gaussian decoders")
    for beta in (0, -1.0, math.nan, "1"):
        one_line(lambda beta=beta: objectives.LogMSE(beta=beta), "beta must be a finite number > 0")


@pytest.mark.parametrize("sigma", [0.3, *likelihoods.SIGMAS])
def test_the_gaussian_is_that_of_torch_in_value_and_gradient(sigma):
    gaussian = likelihoods.make("gaussian", (1, 3, 2), sigma).double()
    output = torch.randn(4, 5, gaussian.n_outputs, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 1, 3, 2, dtype=torch.float64)
    ours = gaussian(output)
    theirs = torch.distributions.Independent(torch.distributions.Normal(ours.base_dist.loc, ours.base_dist.scale), 3)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    wanted = [output, *gaussian.parameters()]
    for found, expected in zip(
        torch.autograd.grad(ours.log_prob(x).sum(), wanted, retain_graph=True),
        torch.autograd.grad(theirs.log_prob(x).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    wider = ours.expand((2, 4, 5))
    torch.testing.assert_close(wider.log_prob(x), ours.log_prob(x).expand(2, 4, 5))
