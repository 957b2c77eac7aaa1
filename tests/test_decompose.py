"""The terms of the rate against the linear-Gaussian closed form and against plain sums in float64, each on its own.

"They add up to the KL" holds for every wrong estimate of log q(z) as well: it is asserted last, and never alone.
"""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from errors import one_line
from torch import distributions

from nbvae import _tensors, analytic, data, estimators, models, objectives, posterior, training
from nbvae.estimators import decomposition

TERMS = ("mutual_information", "marginal_kl", "total_correlation", "dimension_kl")


def linear_model(encoder, variance, bias=None, n=None):
    """A linear VAE in float64 with this encoder; its decoder is left as it was drawn."""
    encoder = torch.as_tensor(encoder)
    k, n = encoder.shape
    model = models.VAE((n,), k, network="linear", likelihood="gaussian", sigma=0.7).double()
    with torch.no_grad():
        model.encoder.mean.weight.copy_(encoder)
        model.encoder.mean.bias.copy_(torch.zeros(k) if bias is None else torch.as_tensor(bias))
        model.encoder.log_variance.copy_(torch.as_tensor(variance).log())
    return model


def gaussian_sample(n, mean, root, exact_moments=True):
    """N(mean, root rootᵀ), n rows.

    With `exact_moments` the sample is shifted and whitened, so that its mean and covariance are those of the population. The
    terms are means of functions that are all but quadratic in x: what is left of their noise is that of z. This moves no
    sample by more than order n^(−1/2), and the expectation of no term by more than order 1/n.
    """
    unit = torch.randn(n, len(mean), dtype=torch.float64)
    if exact_moments:
        unit = unit - unit.mean(0)
        unit = torch.linalg.solve_triangular(torch.linalg.cholesky(unit.T @ unit / n), unit.T, upper=False).T
    return torch.as_tensor(mean) + unit @ torch.as_tensor(root).T


# A correlated, badly scaled, shifted encoder of correlated data: no term is near zero.
ROOT = np.array([[1.2, 0, 0, 0], [0.5, 0.9, 0, 0], [-0.3, 0.4, 0.7, 0], [0.2, -0.6, 0.1, 0.5]])
MEAN = np.array([0.5, -1.0, 0.0, 2.0])
ENCODER = np.array([[-0.8, 0.0, 0.3, -0.5], [-0.8, -0.5, 0.4, -0.2], [-0.6, 0.1, 0.8, 0.3]])
ENCODER_BIAS = np.array([0.3, 0.2, -1.0])
VARIANCES = {  # by ② in nats
    2.0: np.array([0.279, 0.557, 0.139]),
    2.8: np.array([0.126, 0.252, 0.063]),
    3.4: np.array([0.075, 0.151, 0.038]),
}


def closed_form(variance, groups=((0,), (1,), (2,))):
    """All terms from the covariance S of z, written out here: entropies of Gaussians are half log-determinants."""
    s = ENCODER @ ROOT @ ROOT.T @ ENCODER.T + np.diag(variance)
    centre = ENCODER @ MEAN + ENCODER_BIAS

    def half_log_det(of):
        return 0.5 * np.linalg.slogdet(s[np.ix_(of, of)])[1]

    k = len(s)
    singles = sum(half_log_det([d]) for d in range(k))
    blocks = sum(half_log_det(list(group)) for group in groups)
    whole = half_log_det(range(k))
    moments = 0.5 * (s.diagonal() + centre**2 - 1)
    return {
        "mutual_information": whole - 0.5 * np.log(variance).sum(),
        "marginal_kl": moments.sum() - whole,
        "total_correlation": singles - whole,
        "dimension_kl": moments.sum() - singles,
        "dimension_kl_per_latent": moments - 0.5 * np.log(s.diagonal()),
        "information_per_latent": 0.5 * np.log(s.diagonal() / variance),
        "between_groups": blocks - whole,
        "within_groups": singles - blocks,
    }


# ---------------------------------------------------------------- against the population


@pytest.mark.parametrize(("information", "n", "n_samples"), [(2.0, 5000, 4), (2.8, 10_000, 2)])
def test_every_term_is_that_of_the_population(information, n, n_samples):
    """The finite sample lowers ② by at most about e^(2②)/2N, .005 and .014 nats here."""
    variance = VARIANCES[information]
    exact = closed_form(variance)
    assert exact["mutual_information"] == pytest.approx(information, abs=0.01)
    library = analytic.linear_four_terms(ROOT @ ROOT.T, ENCODER, variance, MEAN, ENCODER_BIAS)
    x = gaussian_sample(n, MEAN, ROOT)
    found = estimators.decompose(linear_model(ENCODER, variance, ENCODER_BIAS), x, n_samples=n_samples)
    assert found.n_reference == n
    assert not found.saturated
    for name in TERMS:
        value, error = getattr(found, name), getattr(found, f"{name}_stderr")
        assert exact[name] > 0.2
        assert getattr(library, name) == pytest.approx(exact[name], abs=1e-10)
        assert abs(value - exact[name]) < min(3 * error, 0.02), name
        assert error < 0.05
    for name in ("dimension_kl_per_latent", "information_per_latent"):
        values, errors = getattr(found, name).numpy(), getattr(found, f"{name}_stderr").numpy()
        np.testing.assert_allclose(values, exact[name], atol=0.015)
        assert (abs(values - exact[name]) < 3 * errors).all(), name
    rate = exact["mutual_information"] + exact["marginal_kl"]
    assert found.rate == pytest.approx(rate, abs=1e-9)  # closed form and moments exact


@pytest.mark.parametrize("groups", [[[0, 2], [1]], [[1, 2], [0]]])
def test_terms_between_and_within_groups_are_log_determinants_of_blocks(groups):
    x = gaussian_sample(3000, MEAN, ROOT)
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    exact = closed_form(VARIANCES[2.0], groups)
    found = estimators.decompose(model, x, n_samples=3, groups=groups)
    for name in ("between_groups", "within_groups"):
        value, error = getattr(found, name), getattr(found, f"{name}_stderr")
        assert abs(value - exact[name]) < min(3 * error, 0.03)
        assert exact[name] > 0.1
    assert found.between_groups + found.within_groups == pytest.approx(found.total_correlation, abs=1e-9)
    each = estimators.decompose(model, x[:500], n_samples=1, groups=[[0], [1], [2]])
    assert each.between_groups == pytest.approx(each.total_correlation, abs=1e-9)
    assert each.within_groups == pytest.approx(0, abs=1e-9)
    one = estimators.decompose(model, x[:500], n_samples=1, groups=[[2, 0, 1]])
    assert one.between_groups == pytest.approx(0, abs=1e-4)
    assert one.within_groups == pytest.approx(each.total_correlation, abs=1e-4)


def test_standard_errors_are_those_of_independent_repetitions():
    """Disjoint parts of one reference, each measured against all of it: 50 values of every term."""
    reference = gaussian_sample(2000, MEAN, ROOT)
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    found = [
        estimators.decompose(model, x, reference, n_samples=2, groups=[[0, 1], [2]], seed=seed)
        for seed, x in enumerate(reference.split(40))
    ]
    for name in (
        *TERMS,
        "rate",
        "distortion",
        "mutual_information_upper",
        "marginal_kl_lower",
        "between_groups",
        "within_groups",
    ):
        values = np.array([getattr(each, name) for each in found])
        claimed = np.mean([getattr(each, f"{name}_stderr") for each in found])
        assert values.std(ddof=1) == pytest.approx(claimed, rel=0.3), name  # 50 repetitions: ± 10 % each σ
    for name in ("dimension_kl_per_latent", "information_per_latent"):
        values = torch.stack([getattr(each, name) for each in found])
        claimed = torch.stack([getattr(each, f"{name}_stderr") for each in found]).mean(0)
        np.testing.assert_allclose(values.std(0), claimed, rtol=0.35)


# ---------------------------------------------------------------- degenerate encoders


def test_a_collapsed_encoder_tells_nothing():
    """All posteriors equal: ② = 0, whatever the latents' mismatch to the prior, which is all in ④."""
    model = linear_model(np.zeros((2, 4)), np.array([0.5, 2.0]), np.array([1.0, 0.0]))
    found = estimators.decompose(model, gaussian_sample(200, MEAN, ROOT))
    exact = 0.5 * ((0.5 + 1 - 1 - math.log(0.5)) + (2 - 1 - math.log(2)))
    assert found.mutual_information == pytest.approx(0, abs=1e-6)
    assert found.mutual_information_upper == pytest.approx(0, abs=1e-6)
    assert found.total_correlation == pytest.approx(0, abs=1e-6)
    assert found.rate == pytest.approx(exact, abs=1e-12)
    assert abs(found.marginal_kl - exact) < 3 * found.marginal_kl_stderr < 0.2


def test_separated_posteriors_saturate_at_log_n():
    """N posteriors that do not overlap: ② = log N, ④ = R − log N, and the bound without the own component is useless."""
    x = 3 * torch.arange(40, dtype=torch.float64).unsqueeze(1)
    model = linear_model(np.ones((1, 1)), np.array([0.01]))
    found = estimators.decompose(model, x, n_samples=500)
    rate = (0.5 * (x**2 + 0.01 - 1 - math.log(0.01))).mean().item()
    assert found.mutual_information == pytest.approx(math.log(40), abs=1e-6)
    assert found.log_n == pytest.approx(math.log(40), abs=1e-12)
    assert found.mutual_information_upper > 100
    assert found.rate == pytest.approx(rate, rel=1e-12)
    # Only the noise of z is left in ④: its part of log q − log p is ε²/2 (σ² − 1) and σμε.
    noise = math.sqrt((0.5 * 0.99**2 + 0.01 * x.square().mean().item()) / (40 * 500))
    assert found.marginal_kl == pytest.approx(rate - math.log(40), abs=4 * noise)
    assert found.saturated
    assert "Saturated: R > log N = 3.689" in str(found)
    assert f"KL(q(z) ‖ p(z)) between {found.marginal_kl_lower:.3f} and {found.marginal_kl:.3f}" in str(found)


def test_the_table_names_every_term_with_its_error():
    found = estimators.decompose(
        linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS), gaussian_sample(300, MEAN, ROOT), groups=[[0, 1], [2]]
    )
    assert (found.rate > math.log(300)) == found.saturated
    model = linear_model(0.5 * ENCODER, np.array([0.8, 0.9, 0.7]))
    free = estimators.decompose(model, gaussian_sample(300, np.zeros(4), ROOT))
    assert not free.saturated
    assert "aturated" not in str(free)
    assert f"log N = {math.log(300):.3f}" in str(free)
    lines = str(found).splitlines()
    for label, name in zip(
        ("D ", "R ", "I(x; z)", "KL(q", "TC total", "DW", "TC between", "TC within"),
        ("distortion", "rate", *TERMS, "between_groups", "within_groups"),
        strict=True,
    ):
        [line] = [line for line in lines if line.startswith(label)]
        assert f"{getattr(found, name):.3f} ± {getattr(found, name + '_stderr'):.3f}" in line
    assert len(str(free).splitlines()) == 6


# ---------------------------------------------------------------- against plain sums, at the same z


def log_normal(z, mean, std):
    return -0.5 * ((z - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)


def log_mean(logs):
    top = logs.max()
    return top + math.log(np.exp(logs - top).mean())


def plain_terms(model, x, reference, own, draws, groups):
    """Every value of `decompose` at the draws (draws, batch, k), by loops over examples and draws."""
    posteriors = model.posterior(reference)
    mean, std = posteriors.mean.detach().numpy(), posteriors.stddev.detach().numpy()
    mine = model.posterior(x)
    mu, sigma = mine.mean.detach().numpy(), mine.stddev.detach().numpy()
    k = mean.shape[1]
    weight, bias = (part.detach().numpy() for part in model.decoder[0].parameters())
    noise = model.observation.sigma.item()
    rows = []
    for j in range(len(x)):
        values = []
        for z in draws[:, j].numpy():
            pairs = log_normal(z, mean, std)
            log_q = log_mean(pairs.sum(1))
            rest = math.nan if own is None else log_mean(np.delete(pairs, own[j], 0).sum(1))
            singles = np.array([log_mean(pairs[:, d]) for d in range(k)])
            blocks = sum(log_mean(pairs[:, group].sum(1)) for group in groups)
            log_p, log_owns = log_normal(z, 0, 1), log_normal(z, mu[j], sigma[j])
            log_own = log_owns.sum()
            values.append(
                {
                    "distortion": -log_normal(x[j].numpy(), weight @ z + bias, noise).sum(),
                    "rate": 0.5 * (mu[j] ** 2 + sigma[j] ** 2 - 1 - 2 * np.log(sigma[j])).sum(),
                    "mutual_information": log_own - log_q,
                    "mutual_information_upper": log_own - rest,
                    "marginal_kl": log_q - log_p.sum(),
                    "marginal_kl_lower": rest - log_p.sum(),
                    "total_correlation": log_q - singles.sum(),
                    "dimension_kl": (singles - log_p).sum(),
                    "between_groups": log_q - blocks,
                    "within_groups": blocks - singles.sum(),
                    **{f"dimension_kl_per_latent {d}": singles[d] - log_p[d] for d in range(k)},
                    **{f"information_per_latent {d}": log_owns[d] - singles[d] for d in range(k)},
                }
            )
        rows.append({name: np.mean([value[name] for value in values]) for name in values[0]})
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {name: (column.mean(), column.std(ddof=1) / math.sqrt(len(x))) for name, column in columns.items()}


@pytest.fixture
def drawn(monkeypatch):
    """The z that `decompose` draws, as it draws them."""
    seen, draws = [], decomposition._draws

    def keep(*arguments):
        z, columns = draws(*arguments)
        seen.append(z)
        return z, columns

    monkeypatch.setattr(decomposition, "_draws", keep)
    return seen


def test_the_population_lies_between_the_bounds_with_and_without_the_own_component(drawn):
    """In expectation over the reference, for every N, and closer with N; ④ the other way round.

    The same ratios under the population's Gaussian q(z), at the same z, have the closed form as their expectation: the
    difference from them has the bias, and little of the noise.
    """
    variance = VARIANCES[3.4]
    model = linear_model(ENCODER, variance, ENCODER_BIAS)
    marginal = distributions.MultivariateNormal(
        torch.tensor(ENCODER @ MEAN + ENCODER_BIAS), torch.tensor(ENCODER @ ROOT @ ROOT.T @ ENCODER.T + np.diag(variance))
    )
    exact, widths = closed_form(variance), []
    for n, repeats in ((300, 8), (1000, 6), (3000, 4)):
        rows, controls = [], []
        for seed in range(repeats):
            x = gaussian_sample(n, MEAN, ROOT, exact_moments=False)
            found = estimators.decompose(model, x, n_samples=1, seed=seed)
            z = drawn.pop()
            log_q, log_p = marginal.log_prob(z), distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            information = (model.posterior(x).log_prob(z) - log_q).mean().item()
            divergence = (log_q - log_p).mean().item()
            controls.append([information - exact["mutual_information"], divergence - exact["marginal_kl"]])
            rows.append(
                [
                    found.mutual_information - information,
                    found.mutual_information_upper - information,
                    divergence - found.marginal_kl,
                    divergence - found.marginal_kl_lower,
                ]
            )
            # Sample by sample: log q(z|x)/q(z) with the own component is smaller, exactly.
            assert found.mutual_information < found.mutual_information_upper
            assert found.marginal_kl > found.marginal_kl_lower
        control, noise = np.mean(controls, 0), np.std(controls, 0, ddof=1) / math.sqrt(repeats)
        assert (abs(control) < 4 * noise).all()
        mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / math.sqrt(repeats)
        assert (mean[[0, 2]] < -3 * error[[0, 2]]).all()
        assert (mean[[1, 3]] > 3 * error[[1, 3]]).all()
        widths.append(mean[1] - mean[0])
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


GROUPS = [[2, 0], [1]]


@pytest.mark.parametrize("which", ["all", "some", "shuffled", "duplicates", "float32", "reshaped"])
def test_each_x_is_matched_to_its_own_component(which, drawn):
    reference = gaussian_sample(120, MEAN, ROOT, exact_moments=False)
    model = linear_model(ENCODER, VARIANCES[2.8], ENCODER_BIAS)
    own = {
        "all": np.arange(120),
        "some": np.array([3, 4, 100]),
        "duplicates": np.array([7, 119, 50, 7]),
    }.get(which, np.random.default_rng(0).permutation(120)[:40])
    if which == "duplicates":
        reference[50] = reference[7] = reference[20]  # one of the three equal components is left out, whichever
    if which == "float32":
        reference = reference.float()
    x = reference[own].clone()
    found = estimators.decompose(model, x, reference, n_samples=3, groups=GROUPS)
    assert isinstance(found, estimators.Decomposition)
    truth = plain_terms(model, x.double(), reference.double(), own, drawn[0], GROUPS)
    assert drawn[0].shape == (3, len(own), 3)
    for name, (value, error) in truth.items():
        if " " in name:
            term, d = name.split()
            assert getattr(found, term)[int(d)].item() == pytest.approx(value, abs=1e-4), name
            assert getattr(found, f"{term}_stderr")[int(d)].item() == pytest.approx(error, abs=1e-4), name
        else:
            assert getattr(found, name) == pytest.approx(value, abs=1e-3 if "upper" in name or "lower" in name else 1e-4), name
            assert getattr(found, f"{name}_stderr") == pytest.approx(error, abs=1e-3), name


@pytest.mark.parametrize("held_out", ["all", "one"])
def test_held_out_examples_have_cross_terms(held_out, drawn):
    reference = gaussian_sample(120, MEAN, ROOT, exact_moments=False)
    x = reference[30:60].clone()
    x[0 if held_out == "one" else slice(None)] += 0.1
    model = linear_model(ENCODER, VARIANCES[2.8], ENCODER_BIAS)
    found = estimators.decompose(model, x, reference, n_samples=2)
    assert isinstance(found, estimators.CrossTerms)
    assert found.n_reference == 120
    assert not hasattr(found, "mutual_information")
    truth = plain_terms(model, x, reference, None, drawn[0], [])
    for name, term in (
        ("distortion", "distortion"),
        ("rate", "rate"),
        ("cross_information", "mutual_information"),
        ("cross_marginal", "marginal_kl"),
        ("cross_correlation", "total_correlation"),
        ("cross_dimension", "dimension_kl"),
    ):
        assert getattr(found, name) == pytest.approx(truth[term][0], abs=1e-4), name
        assert getattr(found, f"{name}_stderr") == pytest.approx(truth[term][1], abs=1e-4), name


def test_far_held_out_examples_show_what_no_bound_forbids():
    """x far from the reference: the cross term exceeds log N and R, where ② could not."""
    model = linear_model(ENCODER, VARIANCES[2.8], ENCODER_BIAS)
    reference = gaussian_sample(100, MEAN, ROOT)
    found = estimators.decompose(model, reference + 10, reference)
    assert found.cross_information > found.rate > math.log(100)
    assert found.cross_marginal < 0


def test_terms_add_up(drawn):
    """R = ② + ④ within the noise of z, and TC + DW = ④ at every draw; ten thousand draws by default."""
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    x = gaussian_sample(300, MEAN, ROOT)
    found = estimators.decompose(model, x)
    assert drawn[0].shape == (34, 300, 3)
    noise = 3 * math.sqrt(2 * 3 / (34 * 300))  # of log q(z|x)/p(z) given x, which is R on average
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=2 * noise)
    assert found.total_correlation + found.dimension_kl == pytest.approx(found.marginal_kl, abs=1e-9)
    assert found.dimension_kl_per_latent.sum().item() == pytest.approx(found.dimension_kl, abs=1e-9)
    alone = found.information_per_latent.sum().item()  # what the latents tell twice is their total correlation
    assert alone - found.total_correlation == pytest.approx(found.mutual_information, abs=1e-9)
    point = estimators.evaluate(model, x, n_samples=34)
    assert found.rate == pytest.approx(point.rate, abs=1e-9)
    assert found.distortion == pytest.approx(point.distortion, abs=4 * point.distortion_stderr)


def test_stream_model_and_parts(monkeypatch):
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    x = gaussian_sample(50, MEAN, ROOT)
    state = torch.random.get_rng_state()
    a, b, other = (estimators.decompose(model, x, n_samples=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert a.mutual_information == b.mutual_information != other.mutual_information
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(_tensors, "AT_ONCE", 4 * 7)
    parts = estimators.decompose(model, x, n_samples=20, seed=1)
    assert parts.rate == pytest.approx(a.rate, rel=1e-12)
    for name in TERMS:  # the examples' noise is shared, that of z is not
        assert getattr(parts, name) == pytest.approx(getattr(a, name), abs=4 * math.sqrt(2 * 2 * 3 / 1000)), name


@pytest.mark.parametrize("sigma", [1e-5, 1e-8, 1e-12])
def test_a_posterior_narrower_than_the_rounding_of_its_mean_is_still_measured(sigma):
    """q(z|x) = N(μ, σ²) in a float32 model, one of three wide: ② + KL(q(z) ‖ p) add up to the rate, TC + DW to the latter."""

    class Narrow:
        def posterior(self, x):
            return torch.distributions.Independent(torch.distributions.Normal(x, self.std(x)), 1)

        def std(self, x):
            return torch.where(x[:, :1] > 0.4, 0.5, sigma).expand_as(x)

        def likelihood(self, z):
            return torch.distributions.Independent(torch.distributions.Normal(z, 1.0), 1)

        def prior(self):
            return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)

    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    found = estimators.decompose(Narrow(), x, n_samples=20)
    assert found.rate > 10
    wide = Narrow().std(x)[:, 0] == 0.5
    # A narrow code names its example, which has mass 1/N; a wide one is among the other wide ones.
    alone = estimators.decompose(Narrow(), x[wide], n_samples=20)
    share = wide.double().mean().item()
    expected = found.log_n + share * (alone.mutual_information - alone.log_n)
    assert found.mutual_information == pytest.approx(expected, abs=0.02)
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=0.05)
    assert found.total_correlation + found.dimension_kl == pytest.approx(found.marginal_kl, abs=1e-6)
    # One latent is the same story with one dimension: a narrow z_d names its example too.
    assert found.information_per_latent.numpy() == pytest.approx(
        found.log_n + share * (alone.information_per_latent.numpy() - alone.log_n), abs=0.02
    )


# ---------------------------------------------------------------- bounds on trained models


@pytest.mark.parametrize("name", objectives.TABLE)
@pytest.mark.parametrize("source", ["digits", "gaussian", "patches"])
def test_bounds_on_every_trained_row(source, name):
    dataset = data.load(source)
    discrete = source == "digits"
    reference = dataset.train[:1500]
    sigma = None if discrete else 0.3 * reference.std().item()
    torch.manual_seed(0)
    model = models.VAE(dataset.shape, 4, likelihood="bernoulli" if discrete else "gaussian", sigma=sigma)
    objective = objectives.Capacity(gamma=5.0) if name == "capacity" else objectives.TABLE[name]()
    config = training.TrainConfig(epochs=4, batch_size=50, lr=1e-2 if discrete else 3e-3)
    training.fit(model, replace(dataset, train=reference), objective, config)
    found = estimators.decompose(model, reference, n_samples=10, groups=[[0, 1], [2, 3]])
    # The rate is exact, the terms are sampled: a shift of either would part them.
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=0.06)
    for name in (*TERMS, "between_groups", "within_groups"):
        assert getattr(found, name) > -3 * getattr(found, f"{name}_stderr"), name
    for name in ("dimension_kl_per_latent", "information_per_latent"):
        assert (getattr(found, name) > -3 * getattr(found, f"{name}_stderr")).all()
    assert found.information_per_latent.max() < found.log_n
    assert 0.1 < found.mutual_information < found.rate + 3 * found.mutual_information_stderr
    assert found.mutual_information <= found.log_n == pytest.approx(math.log(len(reference)))
    if discrete:  # for a density H − D bounds nothing
        entropy = estimators.empirical_entropy(reference)
        assert entropy - found.distortion <= found.mutual_information + 3 * found.distortion_stderr
    assert found.mutual_information < found.mutual_information_upper
    assert found.total_correlation + found.dimension_kl == pytest.approx(found.marginal_kl, abs=1e-6)


def test_a_rate_above_log_n_that_is_not_information_saturates_nothing():
    """q(z|x) = N(4, 1) for every x: R = ④ = 8 nats, far above log N, and ② is measured as exactly nothing."""
    x = gaussian_sample(300, np.zeros(4), ROOT)
    found = estimators.decompose(linear_model(np.zeros((3, 4)), np.ones(3), np.array([4.0, 0.0, 0.0])), x)
    assert found.rate == pytest.approx(8.0)
    assert found.rate > found.log_n
    assert found.mutual_information == pytest.approx(0, abs=1e-6)
    assert found.mutual_information_upper == pytest.approx(0, abs=1e-6)
    assert not found.saturated
    assert "aturated" not in str(found)


def test_entropy_less_distortion_bounds_the_information_tightly():
    """H − D ≤ ② ≤ log N with all three close: 24 distinct binary rows that the model has learned by heart."""
    x = torch.tensor([[i * 37 >> bit & 1 for bit in range(10)] for i in range(24)]).float()
    model = models.VAE((10,), 2, hidden=(64,))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = objectives.BetaVAE(0.05)
    for _ in range(300):
        optimiser.zero_grad()
        objective(model, x).total.backward()
        optimiser.step()
    found = estimators.decompose(model, x, n_samples=500)
    entropy = estimators.empirical_entropy(x)
    assert entropy == pytest.approx(math.log(24))
    bound = entropy - found.distortion
    error = math.hypot(found.distortion_stderr, found.mutual_information_stderr)
    assert bound < found.mutual_information + 3 * error
    assert found.mutual_information < math.log(24) + 1e-5  # log q(z|x) is computed in float32
    assert bound > math.log(24) - 0.6  # tight enough to catch an error of half a nat
    assert found.marginal_kl == pytest.approx(found.rate - found.mutual_information, abs=0.1)


# ---------------------------------------------------------------- what minibatches make of the terms


def plain_minibatch(z, mean, std, n, estimator):
    """②, ④, TC, DW of one batch, from the definition of the weights, by loops: weights multiply densities, not their logs."""
    batch, k = z.shape
    values = []
    for j in range(batch):
        joint, singles = 0.0, np.zeros(k)
        for i in range(batch):
            if estimator == "weighted":
                w = 1 / (n * batch)
            elif i == j:
                w = 1 / n
            elif estimator == "hfvae":
                w = (n - 1) / (n * (batch - 1))
            else:  # one other stands for all that the batch does not hold
                w = (n - batch + 1) / (n * (batch - 1)) if i == (j + 1) % batch else 1 / (batch - 1)
            density = np.exp(log_normal(z[j], mean[i], std[i]))
            joint, singles = joint + w * density.prod(), singles + w * density
        own, prior = log_normal(z[j], mean[j], std[j]).sum(), log_normal(z[j], 0, 1).sum()
        product = np.log(singles).sum()
        values.append([own - np.log(joint), np.log(joint) - prior, np.log(joint) - product, product - prior])
    return np.mean(values, 0)


@pytest.mark.parametrize("estimator", posterior.MINIBATCH)
@pytest.mark.parametrize("batch_size", [5, 20])
def test_minibatch_terms_are_those_of_their_definition(estimator, batch_size, monkeypatch):
    reference = gaussian_sample(20, MEAN, ROOT)
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    seen, pairwise = [], posterior.pairwise

    def keep(*codes):
        seen.append([part.numpy() for part in codes])
        return pairwise(*codes)

    monkeypatch.setattr(decomposition, "pairwise", keep)
    found = estimators.minibatch_terms(model, reference, batch_size, estimator, n_batches=6)
    rows = np.array([plain_minibatch(*codes, 20, estimator) for codes in seen])
    assert rows.shape == (6, 4)
    for name, row in zip(TERMS, rows.T, strict=True):
        estimate = getattr(found, name)
        np.testing.assert_allclose(estimate.per_example, row, atol=1e-9)
        assert estimate.value == pytest.approx(row.mean(), abs=1e-9)
        assert estimate.stderr == pytest.approx(row.std(ddof=1) / math.sqrt(6), abs=1e-9)
    means = model.posterior(reference).mean.detach().numpy()
    for _, mean, _ in seen:  # drawn from the reference without replacement, and not always the same
        rows = [np.flatnonzero((abs(means - one) < 1e-12).all(1)).item() for one in mean]
        assert len(set(rows)) == batch_size
    if batch_size < 20:
        assert any(not np.array_equal(seen[0][1], other[1]) for other in seen[1:])


def test_minibatch_errors_shrink_with_the_batch():
    """Logarithms of unbiased estimates are too low, so ② is too high, less so for larger batches; none for a batch of all."""
    n = 256
    reference = gaussian_sample(n, MEAN, ROOT)
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    posterior = model.posterior(reference)
    mean, std = posterior.mean.detach().numpy(), posterior.stddev.detach().numpy()
    values = []
    for _ in range(40):
        z = mean + std * np.random.default_rng(len(values)).normal(size=mean.shape)
        log_q = np.array([log_mean(log_normal(one, mean, std).sum(1)) for one in z])
        values.append((log_normal(z, mean, std).sum(1) - log_q).mean())
    exact, noise = np.mean(values), np.std(values, ddof=1) / math.sqrt(40)
    errors = {}
    for batch_size, n_batches in ((8, 400), (32, 200), (128, 80), (n, 40)):
        for estimator in ("hfvae", "stratified"):
            found = estimators.minibatch_terms(model, reference, batch_size, estimator, n_batches).mutual_information
            errors[estimator, batch_size] = found.value - exact, math.hypot(found.stderr, noise)
    for estimator in ("hfvae", "stratified"):
        sizes = [errors[estimator, batch_size] for batch_size in (8, 32, 128)]
        for (large, a), (small, b) in itertools.pairwise(sizes):
            assert large - small > 3 * math.hypot(a, b)
        assert abs(sizes[-1][0]) < 0.25
    last, error = errors["hfvae", n]
    assert abs(last) < 3 * error < 0.1


def test_minibatch_terms_of_separated_and_of_equal_posteriors():
    """By hand. Apart: ② is log N, and log(NB) "weighted". Equal: ② is 0, and log N "weighted", for every model and batch.

    Without the constants of N and B, or with the batch on the wrong axis, ② would be 0 or log B here, or TC tens of nats off.
    """
    n, b, k = 30, 6, 2
    x = 5 * torch.arange(n, dtype=torch.float64).unsqueeze(1)
    apart = linear_model(np.ones((k, 1)), np.full(k, 0.01))
    equal = linear_model(np.zeros((k, 1)), np.ones(k))
    for estimator in posterior.MINIBATCH:
        information = math.log(n * b) if estimator == "weighted" else math.log(n)
        found = estimators.minibatch_terms(apart, x, b, estimator, n_batches=5)
        assert found.mutual_information.value == pytest.approx(information, abs=1e-9)
        # Every log q̂, of one latent or of all, holds the own component alone: TC is (k − 1) times what ② is.
        assert found.total_correlation.value == pytest.approx((k - 1) * information, abs=1e-9)
        found = estimators.minibatch_terms(equal, x, b, estimator, n_batches=5)
        shift = math.log(n) if estimator == "weighted" else 0
        assert found.mutual_information.value == pytest.approx(shift, abs=1e-9)
        assert found.marginal_kl.value == pytest.approx(-shift, abs=1e-9)
        assert found.total_correlation.value == pytest.approx((k - 1) * shift, abs=1e-9)
        assert found.dimension_kl.value == pytest.approx(-k * shift, abs=1e-9)


def test_minibatch_terms_leave_the_stream():
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    x = gaussian_sample(30, MEAN, ROOT)
    state = torch.random.get_rng_state()
    a, b, other = (estimators.minibatch_terms(model, x, 10, n_batches=4, seed=seed).marginal_kl for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert a.value == b.value != other.value
    assert len(a.per_example) == 4


# ---------------------------------------------------------------- moments, active units


def test_moments_are_those_of_a_large_sample_and_of_the_definition():
    x = gaussian_sample(300, MEAN, ROOT, exact_moments=False)
    torch.manual_seed(4)
    model = models.VAE((4,), 3, likelihood="gaussian", hidden=(16,)).double()  # the variance depends on x
    with torch.no_grad():
        model.encoder.body[-1].weight *= 4
    found = estimators.moments(model, x)
    posterior = model.posterior(x)
    mu, var = posterior.mean.detach().numpy(), posterior.variance.detach().numpy()
    assert var.std(0).min() > 0.05
    second = mu**2 + var
    np.testing.assert_allclose(found.mean, mu.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.mean_stderr, mu.std(0, ddof=1) / math.sqrt(300), rtol=1e-9)
    np.testing.assert_allclose(found.second_moment, second.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.second_moment_stderr, second.std(0, ddof=1) / math.sqrt(300), rtol=1e-9)
    np.testing.assert_allclose(found.mean_covariance, np.cov(mu.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(mu.T, bias=True) + np.diag(var.mean(0)), atol=1e-12)
    outside = sum(found.mean_covariance[i, j].item() ** 2 for i in range(3) for j in range(3) if i != j)
    assert found.off_diagonal == pytest.approx(outside, rel=1e-9)
    z = posterior.sample((1000,)).flatten(0, 1)
    np.testing.assert_allclose(found.covariance, torch.cov(z.T), rtol=0.02, atol=0.03)
    np.testing.assert_allclose(found.second_moment, z.square().mean(0), rtol=0.02)
    units = estimators.active_units(model, x)  # of the means alone: the variances differ between the examples as well
    np.testing.assert_allclose(units.variance, mu.var(0, ddof=1), rtol=1e-9)
    one = estimators.moments(models.VAE((4,), 1, likelihood="gaussian"), x.float())
    assert one.covariance.shape == (1, 1)
    assert one.off_diagonal == 0


@pytest.mark.parametrize("level", [0.03, 0.3, 1.1, 2.2, 6.0])
def test_at_the_optimum_second_moments_are_one_and_the_active_units_those_above_the_water(level):
    """λ_i > βσ² counts; an inactive latent has its encoder row at zero and the prior's variance. q(z) = p(z): R is all ②."""
    spectrum = [5.0, 3.0, 1.5, 0.8, 0.4]
    x = gaussian_sample(2000, np.zeros(5), np.diag(np.sqrt(spectrum)))
    best = analytic.LinearGaussian(spectrum, 5).solve(beta=1.0, sigma2=level)
    model = linear_model(best.encoder, best.posterior_variance)
    found = estimators.moments(model, x)
    np.testing.assert_allclose(found.second_moment, 1, atol=1e-9)
    np.testing.assert_allclose(found.mean, 0, atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.eye(5), atol=1e-9)
    units = estimators.active_units(model, x)
    expected = [value > level for value in spectrum]
    assert units.active.tolist() == expected
    assert units.count == sum(expected)
    variance = [max(value - level, 0) / value for value in spectrum]
    np.testing.assert_allclose(units.variance, np.array(variance) * 2000 / 1999, atol=1e-9)
    assert estimators.active_units(model, x, threshold=0.7).count == sum(value > 0.7 for value in variance)
    # The means are Gaussian: the error of a variance is √(2/N) of it.
    np.testing.assert_allclose(units.variance_stderr, np.array(variance) * math.sqrt(2 / 2000), rtol=0.15, atol=1e-12)


# ---------------------------------------------------------------- many trainings, bad input


def test_mean_over_trainings_has_the_error_of_the_spread():
    x = gaussian_sample(60, MEAN, ROOT)
    runs = [
        estimators.decompose(linear_model(scale * ENCODER, VARIANCES[2.0]), x, n_samples=3, groups=GROUPS)
        for scale in (0.8, 1, 1.3)
    ]
    mean = estimators.Decomposition.mean_of(runs)
    assert (mean.n_reference, mean.log_n) == (60, math.log(60))
    for name in (*TERMS, "rate", "distortion", "mutual_information_upper", "marginal_kl_lower", "within_groups"):
        values = np.array([getattr(run, name) for run in runs])
        assert getattr(mean, name) == pytest.approx(values.mean(), rel=1e-12)
        assert getattr(mean, f"{name}_stderr") == pytest.approx(values.std(ddof=1) / math.sqrt(3), rel=1e-9)
    for name in ("dimension_kl_per_latent", "information_per_latent"):
        values = np.stack([getattr(run, name) for run in runs])
        np.testing.assert_allclose(getattr(mean, name), values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(getattr(mean, f"{name}_stderr"), values.std(0, ddof=1) / math.sqrt(3), rtol=1e-9)
    other = estimators.decompose(linear_model(ENCODER, VARIANCES[2.0]), x[:50], n_samples=1, groups=GROUPS)
    plain = estimators.decompose(linear_model(ENCODER, VARIANCES[2.0]), x, n_samples=1)
    for bad in ([], runs[:1], [runs[0], other], [runs[0], plain]):
        with pytest.raises(ValueError, match="two decompositions with one reference size and the same groups"):
            estimators.Decomposition.mean_of(bad)


def test_bad_arguments_in_one_line():
    model = linear_model(ENCODER, VARIANCES[2.0])
    x = gaussian_sample(10, MEAN, ROOT)
    normal = distributions.Independent(distributions.Normal(torch.zeros(3), 1.0), 1)
    laplace = SimpleNamespace(
        prior=lambda: normal,
        posterior=lambda x: distributions.Independent(distributions.Laplace(torch.zeros(len(x), 3), 1.0), 1),
        likelihood=model.likelihood,
    )
    other_prior = SimpleNamespace(
        prior=lambda: distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        posterior=model.posterior,
        likelihood=model.likelihood,
    )
    for call, message in (
        (lambda: estimators.decompose(laplace, x), "diagonal Gaussian"),
        (lambda: estimators.decompose(other_prior, x), "diagonal Gaussian"),
        (lambda: estimators.moments(laplace, x), "diagonal Gaussian"),
        (lambda: estimators.active_units(laplace, x), "diagonal Gaussian"),
        (lambda: estimators.minibatch_terms(laplace, x, 4), "diagonal Gaussian"),
        (lambda: estimators.decompose(model, x, x[:1]), "reference of at least two examples, got 1"),
        (lambda: estimators.decompose(model, x[:1]), "at least 2 examples"),
        (lambda: estimators.decompose(model, x[:1], x), "at least 2 examples"),
        (
            lambda: estimators.decompose(SimpleNamespace(model=model), x),
            r"posterior\(x\), likelihood\(z\) and prior\(\).*pass its .model",
        ),
        (lambda: estimators.decompose(model, x.numpy()), "x must be a torch tensor of examples, got ndarray"),
        (lambda: estimators.decompose(models.VAE, x), "VAE has not"),
        (lambda: estimators.decompose(model, data.load("gaussian")), "pass its .train or .test"),
        (lambda: estimators.decompose(model, x, torch.tensor(1.0)), "reference must be a torch tensor of examples"),
        (lambda: estimators.Decomposition.mean_of(estimators.decompose(model, x)), "at least two decompositions"),
        (lambda: estimators.decompose(model, x, list(x)), "reference must be a torch tensor of examples, got list"),
        (lambda: estimators.decompose(model, x, groups=torch.tensor([[0, 1]])), "latents 0 to 2"),
        (lambda: estimators.minibatch_terms(model, x.numpy(), 4), "reference must be a torch tensor"),
        (lambda: estimators.active_units(SimpleNamespace(model=model), x), "pass its .model"),
        (lambda: estimators.Decomposition.mean_of([estimators.decompose(model, x, x + 1)] * 2), "CrossTerms"),
        (lambda: estimators.decompose(model, x, groups=[[0, 1]]), "latents 0 to 2"),
        (lambda: estimators.decompose(model, x, groups=[[0, 1], [1, 2]]), "latents 0 to 2"),
        (lambda: estimators.decompose(model, x, groups=[]), "latents 0 to 2"),
        (lambda: estimators.decompose(model, x, n_samples=0), "n_samples must be"),
        (lambda: estimators.minibatch_terms(model, x, 11), "batch of 11 .* 10 examples"),
        (lambda: estimators.minibatch_terms(model, x, 0), "batch_size must be"),
        (lambda: estimators.minibatch_terms(model, x, 4, "exact"), "estimator must be one of"),
        (lambda: estimators.minibatch_terms(model, x, 4, n_batches=1), "n_batches must be"),
        (lambda: estimators.minibatch_terms(model, x[:1], 1), "at least two"),
        (lambda: estimators.active_units(model, x[:1]), "at least 2 examples"),
        (lambda: estimators.active_units(model, x, threshold=0), "threshold must be"),
    ):
        one_line(call, match=message)


def test_groups_may_be_a_tensor():
    model, x = linear_model(np.eye(2, 4), np.ones(2)), gaussian_sample(10, np.zeros(4), ROOT)
    a, b = (estimators.decompose(model, x, groups=groups) for groups in ([[0], [1]], torch.tensor([[0], [1]])))
    assert a.between_groups == b.between_groups


def test_rows_are_matched_to_their_own_component_at_the_lower_of_two_precisions():
    model = linear_model(ENCODER, VARIANCES[2.0])
    reference = gaussian_sample(30, MEAN, ROOT)
    for x, of in ((reference[:20].float(), reference), (reference[:20].float().double(), reference.float())):
        assert isinstance(estimators.decompose(model, x, of), estimators.Decomposition)
    pixels = (reference > 0).double()
    assert isinstance(estimators.decompose(model, pixels[:20].bool(), pixels), estimators.Decomposition)
    # Random rows differ in their first few bits too.
    for a, b in ((torch.bfloat16, torch.float64), (torch.float64, torch.bfloat16), (torch.float16, torch.float32)):
        assert isinstance(estimators.decompose(model, reference[:20].to(a), reference.to(b)), estimators.Decomposition)
    # Halves are no whole numbers: they must not be rounded into matching.
    assert isinstance(estimators.decompose(model, pixels[:20].to(torch.uint8), 0.5 * pixels), estimators.CrossTerms)


def test_cross_terms_print_each_with_its_error():
    x = gaussian_sample(30, MEAN, ROOT)
    found = estimators.decompose(linear_model(ENCODER, VARIANCES[2.0]), x[:10], x[10:])
    lines = str(found).splitlines()
    assert "20 others" in lines[0]
    for line, name in zip(
        lines[1:],
        ("distortion", "rate", "cross_information", "cross_marginal", "cross_correlation", "cross_dimension"),
        strict=True,
    ):
        assert line.endswith(f"{getattr(found, name):.3f} ± {getattr(found, name + '_stderr'):.3f}")


def test_held_out_examples_bound_the_population_from_the_other_side():
    """E cross_information ≥ ② and E cross_marginal ≤ ④ for independent x and reference, by Jensen; both close for large N."""
    model = linear_model(ENCODER, VARIANCES[2.0], ENCODER_BIAS)
    exact = closed_form(VARIANCES[2.0])
    few, many = (
        [
            estimators.decompose(
                model,
                gaussian_sample(1000, MEAN, ROOT, exact_moments=False),
                gaussian_sample(n, MEAN, ROOT, exact_moments=False),
                n_samples=2,
                seed=repeat,
            )
            for repeat in range(10)
        ]
        for n in (20, 10_000)
    )
    for name, sign in (("cross_information", 1), ("cross_marginal", -1)):
        truth = exact["mutual_information" if sign == 1 else "marginal_kl"]
        values = [sign * (np.array([getattr(one, name) for one in runs]) - truth) for runs in (few, many)]
        errors = [value.std(ddof=1) / 10**0.5 for value in values]
        assert values[0].mean() > 4 * errors[0]
        assert abs(values[1].mean()) < 3 * errors[1] + 0.02


def test_the_mean_over_trainings_has_their_spread():
    x = gaussian_sample(200, np.zeros(4), ROOT)
    runs = [
        estimators.decompose(linear_model(scale * ENCODER, np.array([0.8, 0.9, 0.7])), x, n_samples=3, groups=[[0], [1, 2]])
        for scale in (0.5, 0.6, 0.8)
    ]
    mean = estimators.Decomposition.mean_of(runs)
    for name in ("distortion", "rate", *TERMS, "mutual_information_upper", "marginal_kl_lower", "between_groups"):
        values = np.array([getattr(run, name) for run in runs])
        assert getattr(mean, name) == pytest.approx(values.mean())
        assert getattr(mean, f"{name}_stderr") == pytest.approx(values.std(ddof=1) / 3**0.5)
    per_latent = np.stack([run.dimension_kl_per_latent.numpy() for run in runs])
    assert mean.dimension_kl_per_latent.numpy() == pytest.approx(per_latent.mean(0))
    assert mean.dimension_kl_per_latent_stderr.numpy() == pytest.approx(per_latent.std(0, ddof=1) / 3**0.5)
    assert mean.log_n == runs[0].log_n
    for bad in (runs[:1], [runs[0], estimators.decompose(linear_model(ENCODER, np.ones(3)), x[:50])]):
        with pytest.raises(ValueError, match="at least two decompositions"):
            estimators.Decomposition.mean_of(bad)


def test_measuring_refuses_grey_pixels_under_a_bernoulli_likelihood():
    grey = data.load("digits", binarize=None).test[:20]
    model = models.VAE(grey.shape[1:], 2)
    for measure in (estimators.evaluate, estimators.decompose, estimators.iwae, estimators.ais):
        one_line(lambda measure=measure: measure(model, grey), "pixels that are 0 or 1")
