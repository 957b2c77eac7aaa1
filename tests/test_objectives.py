"""Every row of the table against loops written by hand, its degenerate cases, and what it does to a trained model."""

import dataclasses
import functools
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import torch
from errors import one_line
from rows import GROUPS, PER_RUN
from still import Still
from torch import distributions

from nbvae import analytic, data, estimators, models, objectives, posterior, training

SHAPE, K = (1, 2, 3), 3
LOG_Q = (*posterior.MINIBATCH, "exact")
# The options of `estimator` of each row that has them, the published one first.
ESTIMATORS = {
    "dip_vae_i": ("batch", "exact"),
    "dip_vae_ii": ("batch", "exact"),
    "info_vae": ("mmd", "exact"),
    "anchor_vae": ("hfvae", "weighted", "stratified", "exact"),
    "information_dropout": ("hfvae", "weighted", "stratified", "exact"),
    "factor_vae": ("discriminator", "exact"),
    "beta_tcvae": ("weighted", "stratified", "hfvae", "exact"),
    "hfvae": ("hfvae", "weighted", "stratified", "exact"),
}
# Settings at which no term of a row is missing or has the weight one.
SETTINGS = {
    "vae": [{}],
    "beta_vae": [{"beta": 3.0}],
    "dip_vae_i": [{"off_diagonal": 4.0, "diagonal": 1.5}],
    "dip_vae_ii": [{"off_diagonal": 4.0, "diagonal": 1.5}],
    "info_vae": [{"alpha": 0.3, "lam": 5.0}, {"alpha": -1.0, "lam": 2.5}],
    "capacity": [{"gamma": 2.0, "capacity": 0.1}, {"gamma": 2.0, "capacity": 50.0}],  # above C and below
    "anchor_vae": [{"anchors": (2, 0), "lam": 0.7}],
    "information_dropout": [{"beta": 2.0, "gamma": 3.0}, {"beta": 2.0, "gamma": 3.0, "dimension": 0.4}],
    "factor_vae": [{"gamma": 4.0}],
    "beta_tcvae": [{"alpha": 0.5, "beta": 4.0, "gamma": 2.0}],
    "hfvae": [{"groups": GROUPS, "alpha": 0.5, "beta": 4.0, "gamma": 2.5}, {"alpha": 0.5, "beta": 4.0, "gamma": 2.5}],
}
CASES = [
    (name, options | ({"estimator": estimator} if estimator else {}))
    for name, several in SETTINGS.items()
    for options in several
    for estimator in ESTIMATORS.get(name, (None,))
]
# The documented weights of the VAE, and whether the row's KL is in closed form or sampled.
VAE_WEIGHTS = {
    "vae": ({}, "closed"),
    "beta_vae": ({"beta": 1}, "closed"),
    "dip_vae_i": ({"off_diagonal": 0, "diagonal": 0}, "closed"),
    "dip_vae_ii": ({"off_diagonal": 0, "diagonal": 0}, "closed"),
    "info_vae": ({"alpha": 0, "lam": 1}, "closed"),
    "capacity": ({"gamma": 1, "capacity": 0}, "closed"),
    "anchor_vae": ({"lam": 0}, "closed"),
    "information_dropout": ({"beta": 1, "gamma": 1, "dimension": 1}, "sampled"),
    "factor_vae": ({"gamma": 0}, "closed"),
    "beta_tcvae": ({"alpha": 1, "beta": 1, "gamma": 1}, "sampled"),
    "hfvae": ({"groups": GROUPS, "alpha": 1, "beta": 1, "gamma": 1}, "sampled"),
}


def label(case):
    name, options = case
    return "-".join([name, *(str(value).replace(" ", "") for value in options.values())])


def build(case):
    name, options = case
    return objectives.TABLE[name](**options)


def tiny():
    """A model whose codes lie some standard deviations apart, of different widths: no term is near zero by accident."""
    torch.manual_seed(3)
    model = models.VAE(SHAPE, latent_dim=K, hidden=(5,)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
        centre, log_variance = model.encoder.body[-1].bias.split(K)
        centre.zero_()
        log_variance.sub_(1)
    return model


def binary(n, seed=4):
    return (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) > 0.5).float()


def noise(n, seed=5):
    return torch.randn(n, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def discriminator(seed=6):
    torch.manual_seed(seed)
    return objectives.FactorVAE(width=4, depth=2).companion(K).double()


class Hand:
    """Everything that the rows weigh, number by number, from the outputs of the networks alone."""

    def __init__(self, model, x, reference, noise):
        with torch.no_grad():
            self.mean, self.std = self.encode(model, x)
            mean, std = (torch.tensor(part, dtype=torch.float64) for part in (self.mean, self.std))
            z = mean + std * noise
            logits = model.decoder(z)
        self.tensor, self.z, self.batch = z, z.tolist(), len(x)
        self.whole_mean, self.whole_std = (self.mean, self.std) if reference is None else self.encode(model, reference)
        self.n = len(self.whole_mean)
        pixels = x.double().flatten(1).tolist()
        self.distortion = [
            sum(math.log1p(math.exp(-logit if pixel else logit)) for logit, pixel in zip(*rows, strict=True))
            for rows in zip(logits.tolist(), pixels, strict=True)
        ]
        self.rate = [
            sum(0.5 * (m * m + s * s - 1) - math.log(s) for m, s in zip(*rows, strict=True))
            for rows in zip(self.mean, self.std, strict=True)
        ]
        self.elbo = statistics.fmean(self.distortion) + statistics.fmean(self.rate)

    @staticmethod
    @torch.no_grad()
    def encode(model, x):
        mean, log_variance = model.encoder(x.double().flatten(1))
        return mean.tolist(), (log_variance / 2).exp().tolist()

    def log_density(self, j, mean, std, latents=range(K)):
        """log N(z_j; mean, std²) over some latents."""
        return sum(
            -0.5 * ((self.z[j][d] - mean[d]) / std[d]) ** 2 - math.log(std[d]) - 0.5 * math.log(2 * math.pi) for d in latents
        )

    def weight(self, estimator, j, i):
        """What the posterior of the batch's example i counts for in q(z_j): Chen et al. (2018), Esmaeili et al. (2019)."""
        n, b = self.n, self.batch
        if estimator == "weighted":
            return 1 / (n * b)
        if i == j:
            return 1 / n
        if estimator == "hfvae":
            return (n - 1) / (n * (b - 1))
        return (n - b + 1) / (n * (b - 1)) if i == (j + 1) % b else 1 / (b - 1)

    def log_q(self, j, estimator, latents=range(K)):
        total = 0.0
        if estimator == "exact":
            for mean, std in zip(self.whole_mean, self.whole_std, strict=True):
                total += math.exp(self.log_density(j, mean, std, latents)) / self.n
        else:
            for i in range(self.batch):
                density = math.exp(self.log_density(j, self.mean[i], self.std[i], latents))
                total += self.weight(estimator, j, i) * density
        return math.log(total)

    def log_own(self, j, latents=range(K)):
        return self.log_density(j, self.mean[j], self.std[j], latents)

    def log_p(self, j):
        return self.log_density(j, [0.0] * K, [1.0] * K)

    def mean_over_batch(self, function):
        return statistics.fmean(function(j) for j in range(self.batch))

    def terms(self, estimator, groups):
        """②, TC between groups, (i) within groups, DW."""

        def log_product(parts):
            return lambda j: sum(self.log_q(j, estimator, part) for part in parts)

        singles, between = log_product([[d] for d in range(K)]), log_product(groups)
        return (
            self.mean_over_batch(lambda j: self.log_own(j) - self.log_q(j, estimator)),
            self.mean_over_batch(lambda j: self.log_q(j, estimator) - between(j)),
            self.mean_over_batch(lambda j: between(j) - singles(j)),
            self.mean_over_batch(lambda j: singles(j) - self.log_p(j)),
        )

    def mmd(self, prior_draws):
        """All pairs, kernel exp(−‖a − b‖²/k²)."""

        def kernel(a, b):
            return math.exp(-sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / K**2)

        a, b = self.z, prior_draws.tolist()
        inside = sum(kernel(u, v) for u in a for v in a) / len(a) ** 2 + sum(kernel(u, v) for u in b for v in b) / len(b) ** 2
        return inside - 2 * sum(kernel(u, v) for u in a for v in b) / (len(a) * len(b))

    def dip(self, options, second):
        exact = options.get("estimator") == "exact"
        mean, std = (self.whole_mean, self.whole_std) if exact else (self.mean, self.std)
        c = torch.cov(torch.tensor(mean, dtype=torch.float64).T, correction=0)
        if second:
            c = c + torch.diag(torch.tensor(std, dtype=torch.float64).square().mean(0))
        pairs = [(i, j) for i in range(K) for j in range(K)]
        return options["off_diagonal"] * sum(c[i, j].item() ** 2 for i, j in pairs if i != j) + options["diagonal"] * sum(
            (c[i, i].item() - 1) ** 2 for i in range(K)
        )

    def total(self, name, options, prior_draws=None, companion=None):
        """The loss of a row."""
        distortion, rate = statistics.fmean(self.distortion), statistics.fmean(self.rate)
        estimator = options.get("estimator")
        singles = [[d] for d in range(K)]
        if name == "vae":
            return distortion + rate
        if name == "beta_vae":
            return distortion + options["beta"] * rate
        if name in ("dip_vae_i", "dip_vae_ii"):
            return distortion + rate + self.dip(options, name == "dip_vae_ii")
        if name == "info_vae":
            if estimator == "exact":
                last = self.mean_over_batch(lambda j: self.log_q(j, "exact") - self.log_p(j))
            else:
                last = self.mmd(prior_draws)
            return distortion + (1 - options["alpha"]) * rate + (options["alpha"] + options["lam"] - 1) * last
        if name == "capacity":
            return distortion + options["gamma"] * abs(rate - options["capacity"])
        if name == "anchor_vae":
            anchors = options["anchors"]
            information = self.mean_over_batch(lambda j: self.log_own(j, anchors) - self.log_q(j, estimator, anchors))
            return distortion + rate - options["lam"] * information
        if name == "factor_vae":
            if companion is None:
                correlation = self.terms("exact", singles)[1]
            else:
                correlation = statistics.fmean(companion(row.unsqueeze(0)).item() for row in self.tensor)
            return distortion + rate + options["gamma"] * correlation
        two, correlation, within, dimension = self.terms(estimator, options.get("groups") or singles)
        if name == "information_dropout":
            weights = options["beta"], options["gamma"], 0, options.get("dimension", 0)
        elif name == "beta_tcvae":
            weights = options["alpha"], options["beta"], 0, options["gamma"]
        elif name == "hfvae":
            weights = options["alpha"], options["beta"], options["gamma"], 1
        else:
            raise NotImplementedError(f"write what {name} minimises here, number by number")
        return distortion + sum(w * t for w, t in zip(weights, (two, correlation, within, dimension), strict=True))


# ---------------------------------------------------------------- the losses


def test_the_table_has_its_rows_in_order_and_every_estimator_is_tested():
    for what, rows in {"SETTINGS": SETTINGS, "VAE_WEIGHTS": VAE_WEIGHTS, "PER_RUN": PER_RUN}.items():
        assert list(rows) == list(objectives.TABLE), f"give each row of objectives.TABLE an entry in {what}, in order"
    for name, kind in objectives.TABLE.items():
        assert ("estimator" in {field.name for field in dataclasses.fields(kind)}) == (name in ESTIMATORS)
        if name in ESTIMATORS:
            assert kind().estimator == ESTIMATORS[name][0]
            with pytest.raises(ValueError, match="estimator must be one of") as error:
                kind(estimator="none of them")
            allowed = str(error.value).removeprefix("estimator must be one of ").split(";")[0]
            assert set(allowed.split(", ")) == set(ESTIMATORS[name])


@pytest.mark.parametrize("whole", [True, False], ids=["reference", "no reference"])
@pytest.mark.parametrize("batch", [4, 1])
@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_loss_is_what_loops_over_its_definition_give(case, batch, whole):
    """Without a reference the batch is the data set. A batch of one estimates q(z) by its own posterior alone."""
    name, options = case
    model, x, reference, fixed = tiny(), binary(batch), binary(7, seed=8) if whole else None, noise(batch)
    hand = Hand(model, x, reference, fixed)
    for companion in (None, discriminator()) if name == "factor_vae" else (None,):
        beside = {} if companion is None else {"companion": companion}
        torch.manual_seed(9)
        loss = build(case)(Still(model, fixed), x, reference=reference, **beside)
        torch.manual_seed(9)
        expected = hand.total(name, options, torch.randn(batch, K, dtype=torch.float64), companion)
        assert loss.total.shape == ()
        assert loss.total.item() == pytest.approx(expected, abs=1e-9)
        assert loss.terms.distortion.tolist() == pytest.approx(hand.distortion, abs=1e-9)
        assert loss.terms.rate.tolist() == pytest.approx(hand.rate, abs=1e-9)


@pytest.mark.parametrize("case", [(name, options) for name, (options, _) in VAE_WEIGHTS.items()], ids=label)
def test_with_the_documented_weights_a_row_is_the_vae(case):
    name, options = case
    model, x, reference, fixed = tiny(), binary(5), binary(8, seed=8), noise(5)
    hand = Hand(model, x, reference, fixed)
    sampled = statistics.fmean(hand.distortion) + hand.mean_over_batch(lambda j: hand.log_own(j) - hand.log_p(j))
    assert abs(sampled - hand.elbo) > 0.1  # two different numbers on this draw
    expected = {"closed": hand.elbo, "sampled": sampled}[VAE_WEIGHTS[name][1]]
    for estimator in ESTIMATORS.get(name, (None,)):
        objective = build((name, options | ({"estimator": estimator} if estimator else {})))
        for beside in ({}, {"companion": discriminator()}) if name == "factor_vae" else ({},):
            total = objective(Still(model, fixed), x, step=3, reference=reference, **beside).total
            assert total.item() == pytest.approx(expected, abs=1e-10), estimator


class _Bound(torch.nn.Module):
    """A model with the noise and the objective bound, for `functional_call`."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self):
        torch.manual_seed(9)  # InfoVAE's draws from the prior
        return self.call(self.model)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_gradients_agree_with_finite_differences(case):
    model, fixed, objective = tiny(), noise(4), build(case)
    x, reference = binary(4), binary(6, seed=8)
    names, values = zip(*model.named_parameters(), strict=True)
    for beside in ({}, {"companion": discriminator()}) if case[0] == "factor_vae" else ({},):
        bound = _Bound(model, lambda m, b=beside: objective(Still(m, fixed), x, reference=reference, **b).total)

        def loss(*parameters, bound=bound):
            state = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
            return torch.func.functional_call(bound, state, ())

        inputs = tuple(value.detach().clone().requires_grad_() for value in values)
        assert torch.autograd.gradcheck(
            loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True, check_undefined_grad=False
        )
        assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(loss(*inputs), inputs))


def test_the_whole_reference_as_a_batch_leaves_nothing_to_estimate():
    """HFVAE's weights are then 1/N for all: exact. Chen's 1/(NB) make every log-density log N too small."""
    model, x, fixed = tiny(), binary(8), noise(8)
    a, t, m = 0.5, 4.0, 2.0
    exact, hfvae, weighted = (
        objectives.BetaTCVAE(a, t, m, estimator)(Still(model, fixed), x, reference=x).total.item()
        for estimator in ("exact", "hfvae", "weighted")
    )
    assert hfvae == pytest.approx(exact, abs=1e-10)
    # ② gains log N, TC = joint − Σ singles gains (k − 1) log N, DW loses k log N.
    assert weighted - exact == pytest.approx(math.log(8) * (a + t * (K - 1) - m * K), abs=1e-10)


@pytest.mark.parametrize("estimator", LOG_Q)
def test_groups_of_one_and_one_group_of_all_are_total_correlation_with_the_weight_of_between_and_of_within(estimator):
    model, x, reference, fixed = tiny(), binary(5), binary(8, seed=8), noise(5)

    def total(objective):
        return objective(Still(model, fixed), x, reference=reference).total.item()

    correlation = [total(objectives.BetaTCVAE(0.5, t, 1.0, estimator)) for t in (4.0, 2.5)]
    assert total(objectives.HFVAE([[2], [0], [1]], 0.5, 4.0, 2.5, estimator)) == pytest.approx(correlation[0], abs=1e-10)
    assert total(objectives.HFVAE([[1, 0, 2]], 0.5, 4.0, 2.5, estimator)) == pytest.approx(correlation[1], abs=1e-10)
    assert abs(correlation[0] - correlation[1]) > 0.01


@pytest.mark.parametrize("estimator", LOG_Q)
def test_information_dropout_has_a_free_marginal(estimator):
    """Moving and rescaling latents leaves ② and TC as they are; a weight on DW ties them to the prior."""

    class Moved:
        def __init__(self, model):
            self.model, self.prior = model, model.prior
            self.scale, self.shift = torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([4.0, 0.0, -1.0]).double()

        def posterior(self, x):
            base = self.model.posterior(x).base_dist
            moved = distributions.Normal(base.loc * self.scale + self.shift, base.scale * self.scale)
            return distributions.Independent(moved, 1)

        def likelihood(self, z):
            return self.model.likelihood((z - self.shift) / self.scale)

    model, x, reference, fixed = tiny(), binary(5), binary(8, seed=8), noise(5)
    totals = {
        dimension: [
            objectives.InformationDropout(2.0, 3.0, dimension, estimator)(Still(each, fixed), x, reference=reference).total
            for each in (model, Moved(model))
        ]
        for dimension in (0.0, 1.0)
    }
    torch.testing.assert_close(*totals[0.0], atol=1e-9, rtol=0)
    assert abs(totals[1.0][0] - totals[1.0][1]) > 1


# ---------------------------------------------------------------- capacity


def test_capacity_is_the_distance_of_the_mean_rate():
    """Where the batch's rates lie on both sides of C and their mean is C, the penalty is zero; E|R_i − C| is not."""
    model, x, fixed = tiny(), binary(6), noise(6)
    hand = Hand(model, x, None, fixed)
    target = statistics.fmean(hand.rate)
    assert statistics.fmean(abs(rate - target) for rate in hand.rate) > 0.1
    total = objectives.Capacity(gamma=1000.0, capacity=target)(Still(model, fixed), x).total
    assert total.item() == pytest.approx(statistics.fmean(hand.distortion), abs=1e-9)


@pytest.mark.parametrize(("ramp", "step", "share"), [(0, 0, 1), (0, 9, 1), (8, 0, 0), (8, 2, 0.25), (8, 8, 1), (8, 800, 1)])
def test_capacity_rises_linearly_and_stays(ramp, step, share):
    model, x, fixed = tiny(), binary(4), noise(4)
    hand = Hand(model, x, None, fixed)
    rate, target = statistics.fmean(hand.rate), 30.0
    total = objectives.Capacity(2.0, target, ramp)(Still(model, fixed), x, step=step).total
    assert total.item() == pytest.approx(statistics.fmean(hand.distortion) + 2 * abs(rate - share * target), abs=1e-9)


# ---------------------------------------------------------------- maximum mean discrepancy


def population_mmd(mean, std, k):
    """MMD² of N(mean, std² I) and N(0, I) for exp(−d²/c), c = k²: E exp(−‖δ‖²/c) = (1 + 2v/c)^(−k/2) exp(−‖m‖²/(c + 2v))
    where δ ~ N(m, v I)."""

    def expected(variance, offset):
        return (1 + 2 * variance / k**2) ** (-k / 2) * math.exp(-k * offset**2 / (k**2 + 2 * variance))

    same, prior, across = expected(2 * std**2, 0), expected(2, 0), expected(1 + std**2, mean)
    return same + prior - 2 * across, same, prior


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5)])
def test_mmd_of_two_gaussians_is_the_closed_form_and_its_bias_is_the_pairs_of_a_point_with_itself(mean, std):
    k, n, m, draws = 4, 10, 15, 4000
    a, b = mean + std * torch.randn(draws, n, k).double(), torch.randn(draws, m, k).double()
    exact, same, prior = population_mmd(mean, std, k)
    unbiased, biased = posterior.sample_mmd(a, b, unbiased=True), posterior.sample_mmd(a, b)
    for value, expected in ((unbiased, exact), (biased, (1 - same) / n + (1 - prior) / m + exact)):
        assert abs(value.mean() - expected) < 4 * value.std() / draws**0.5
    assert (biased >= 0).all()
    assert abs(posterior.sample_mmd(a[0], a[0])) < 1e-12


# ---------------------------------------------------------------- the discriminator of FactorVAE


class Correlated(torch.nn.Module):
    """q(z|x) = N(Ax, s² I): for standard normal x the aggregate is N(0, AAᵀ + s² I). The decoder ignores z."""

    def __init__(self, a, s):
        super().__init__()
        self.a, self.s = torch.nn.Parameter(torch.tensor(a)), s

    def posterior(self, x):
        mean = x @ self.a.T
        return distributions.Independent(distributions.Normal(mean, torch.full_like(mean, self.s)), 1)

    def likelihood(self, z):
        return distributions.Independent(distributions.Normal(torch.zeros(*z.shape[:-1], 2), 1.0), 1)

    def prior(self):
        return distributions.Independent(distributions.Normal(torch.zeros(2), 1.0), 1)


def test_a_trained_discriminator_gives_the_total_correlation_of_a_gaussian():
    a, s = [[1.0, 0.0], [0.8, 0.6]], 0.4
    x = torch.randn(4000, 2)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T  # with moments 0 and I
    model = Correlated(a, s)
    truth = analytic.linear_four_terms(np.eye(2), a, [s**2] * 2).total_correlation
    assert truth > 0.2
    objective = objectives.FactorVAE(gamma=3.0, width=32, depth=2)
    companion = objective.companion(2)
    adam = torch.optim.Adam(companion.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 300)
    for _ in range(300):
        batch = x[torch.randperm(4000)[:500]]
        adam.zero_grad()
        objective.companion_loss(companion, model, batch, x).backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        assert companion(model.posterior(x).sample((5,))).mean().item() == pytest.approx(truth, abs=0.05)
        loss = objective(model, x, companion=companion)
    # In the loss with the weight γ, beside D + R.
    assert (loss.total - (loss.terms.distortion + loss.terms.rate).mean()).item() == pytest.approx(3 * truth, abs=0.21)
    with torch.no_grad():  # without a discriminator the exact term
        loss = objective(model, x[:1000], reference=x[:1000])
    assert (loss.total - (loss.terms.distortion + loss.terms.rate).mean()).item() == pytest.approx(3 * truth, abs=0.3)


class Recorder(torch.nn.Module):
    """A discriminator that keeps what it is shown, and says 1 (log-odds) whatever it is."""

    def __init__(self):
        super().__init__()
        self.seen, self.logit = [], torch.nn.Parameter(torch.ones(()))

    def forward(self, z):
        self.seen.append(z)
        return self.logit.expand(*z.shape[:-1], 1)


class Counted:
    """Latent d of example i is 1000 d + i, so that each value of z tells whose it is."""

    def posterior(self, x):
        mean = x + 1000 * torch.arange(3.0)
        return distributions.Independent(distributions.Normal(mean, torch.full_like(mean, 1e-3)), 1)

    def prior(self):
        return distributions.Independent(distributions.Normal(torch.zeros(3), 1.0), 1)


def test_each_latent_is_permuted_on_its_own_over_a_second_batch():
    reference, x, recorder = torch.arange(40.0).unsqueeze(1), torch.arange(10.0).unsqueeze(1), Recorder()
    repeats, firsts, agreements = 300, torch.zeros(40), []
    for _ in range(repeats):
        objectives.FactorVAE().companion_loss(recorder, Counted(), x, reference)
        real, fake = ((z - 1000 * torch.arange(3.0)).round().long() for z in recorder.seen[-2:])
        assert torch.equal(real, torch.arange(10).unsqueeze(1).expand(10, 3))
        columns = [set(column.tolist()) for column in fake.T]
        assert columns[0] == columns[1] == columns[2]  # the marginals are those of one batch
        assert len(columns[0]) == 10  # of ten different examples
        firsts[fake[:, 0]] += 1
        agreements.append((fake[:, 0] == fake[:, 1]).float().mean().item())
        agreements.append((fake[:, 0] == fake[:, 2]).float().mean().item())
    # Two independent permutations of ten agree in one place on average, with variance one.
    assert statistics.fmean(agreements) == pytest.approx(0.1, abs=4 * 0.1 / len(agreements) ** 0.5)
    # Each of the 40 is in the second batch a quarter of the time, not only the ten of x.
    assert (firsts / repeats - 0.25).abs().max() < 5 * (0.25 * 0.75 / repeats) ** 0.5
    objectives.FactorVAE().companion_loss(recorder, Counted(), x)
    fake = (recorder.seen[-1] - 1000 * torch.arange(3.0)).round().long()
    assert all(sorted(column.tolist()) == list(range(10)) for column in fake.T)  # without a reference: x itself


def test_the_discriminators_loss_is_its_cross_entropy():
    """At log-odds of one for all: half of −log σ(1) for the real and half of −log(1 − σ(1)) for the permuted."""
    x, recorder = torch.arange(10.0).unsqueeze(1), Recorder()
    loss = objectives.FactorVAE().companion_loss(recorder, Counted(), x)
    yes = 1 / (1 + math.exp(-1))
    assert loss.item() == pytest.approx(-0.5 * (math.log(yes) + math.log(1 - yes)))
    loss.backward()
    assert recorder.logit.grad.item() == pytest.approx(yes - 0.5)


def test_the_discriminators_step_leaves_the_model_alone_and_the_models_step_the_discriminator(digits):
    small, seen = subset(digits, 48), []

    class Watched(objectives.FactorVAE):
        def __call__(self, model, x, step=0, reference=None, companion=None):
            seen.append(("objective", snapshot(model), snapshot(companion)))
            assert (len(x), len(reference)) == (16, 48)
            return super().__call__(model, x, step, reference, companion)

        def companion_loss(self, companion, model, x, reference=None):
            seen.append(("companion", snapshot(model), snapshot(companion)))
            assert (len(x), len(reference)) == (16, 48)
            assert all(p.grad is None or not p.grad.any() for p in companion.parameters())  # none left by the objective
            loss = super().companion_loss(companion, model, x, reference)
            leaks = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
            assert all(leak is None for leak in leaks)
            before = [p.grad.clone() for p in model.parameters()]
            loss.backward(retain_graph=True)
            assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
            assert any(p.grad.any() for p in companion.parameters())
            for p in companion.parameters():
                p.grad = None
            return loss

    model = make()
    training.fit(model, small, Watched(gamma=2.0, width=8, depth=1, lr=0.02), dataclasses.replace(QUICK, epochs=2))
    assert [kind for kind, *_ in seen] == ["objective", "companion"] * 6
    for (kind, model_before, companion_before), (_, model_after, companion_after) in itertools.pairwise(seen):
        assert torch.equal(model_before, model_after) == (kind == "companion")
        assert torch.equal(companion_before, companion_after) == (kind == "objective")
    # Adam's first step has the length of its learning rate in every weight that has a gradient.
    first, second = (parameters for kind, _, parameters in seen[1:4:2])
    assert (second - first).abs().max().item() == pytest.approx(0.02, rel=1e-3)


def snapshot(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def subset(dataset, n):
    return dataclasses.replace(dataset, train=dataset.train[:n], train_labels=dataset.train_labels[:n])


QUICK = training.TrainConfig(epochs=2, batch_size=16, lr=3e-3, device="cpu")


def make():
    return models.VAE((1, 8, 8), latent_dim=K, hidden=(8,)).double()


# For each row, an objective whose numbers differ between the runs.
# With one seed all models see the same batch, without a leading dimension; with two each sees its own.
ROWS = [(name, estimator, (0, 1)) for name in PER_RUN for estimator in ESTIMATORS.get(name, (None,))]
ROWS += [(name, ESTIMATORS.get(name, (None,))[0], (2,)) for name in PER_RUN]


@pytest.mark.parametrize(("name", "estimator", "seeds"), ROWS)
def test_sweep_equals_separate_fits(digits, name, estimator, seeds):
    """33 examples in batches of 16: the last batch is one example."""
    small = subset(digits, 33)

    def objective(beta):
        return objectives.TABLE[name](**PER_RUN[name](beta), **({"estimator": estimator} if estimator else {}))

    runs = training.sweep(make, small, [0.5, 1.5], objective=objective, seeds=seeds, config=QUICK)
    assert len(runs) == 2 * len(seeds)
    for run in runs:
        torch.manual_seed(run.config.seed)
        alone = training.fit(make(), small, run.objective, run.config)
        for a, b in zip(run.model.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
        for term, values in run.history.items():
            assert values == pytest.approx(alone.history[term], rel=1e-9)
            assert np.isfinite(values).all()
    weights = [snapshot(run.model) for run in runs]
    different = weights[1:] if name != "vae" else weights[1 : len(seeds)]
    assert all((weights[0] - other).abs().max() > 1e-5 for other in different)


# Numbers that make what a row targets move by more than the noise of its training, on digits.
TRAINED = {
    "vae": objectives.VAE(),
    "dip_vae_i": objectives.DIPVAEI(off_diagonal=50.0, diagonal=5.0),
    "dip_vae_ii": objectives.DIPVAEII(off_diagonal=50.0, diagonal=5.0),
    "info_vae": objectives.InfoVAE(alpha=0.0, lam=30.0),
    "anchor_vae": objectives.AnchorVAE(anchors=(1,), lam=0.9),
    "information_dropout": objectives.InformationDropout(beta=1.0, gamma=4.0),
    "factor_vae": objectives.FactorVAE(gamma=10.0),
    "beta_tcvae": objectives.BetaTCVAE(beta=6.0),
    "hfvae": objectives.HFVAE(groups=((0, 1, 2, 3), (4, 5, 6, 7)), beta=6.0, gamma=1.0),
}
HALVES = ((0, 1, 2, 3), (4, 5, 6, 7))
SEEDS = (0, 1, 2)
LONGER = training.TrainConfig(epochs=16, batch_size=100, lr=3e-3, schedule="one_cycle", device="cpu")


def train(digits, objective):
    make = functools.partial(models.VAE, digits.shape, 8, hidden=(64,))
    return training.sweep(make, digits, objectives=[objective], seeds=SEEDS, config=LONGER)


@pytest.fixture(scope="module")
def plain(digits):
    return train(digits, TRAINED["vae"])


def off_diagonal(x, covariance):
    def of(model):
        c = getattr(estimators.moments(model, x), covariance)
        return (c.square().sum() - c.diagonal().square().sum()).item()

    return of


@functools.cache
def decomposition(model, x):
    return estimators.decompose(model, x, n_samples=1, groups=HALVES)


def correlation(x, term="total_correlation"):
    return lambda model: getattr(decomposition(model, x), term)


def unbiased_mmd(x):
    """MMD to the prior, not squared: the U-statistic of one code for each x, the prior's part of it in closed form."""

    @torch.no_grad()
    def of(model):
        torch.manual_seed(1)
        z = model.posterior(x).sample().double()
        n, k = z.shape
        pairs = torch.exp(-torch.cdist(z, z).square() / k**2).fill_diagonal_(0).sum() / (n * (n - 1))
        # E over b ~ N(0, I): of exp(−‖z − b‖²/c), c = k², it is (1 + 2/c)^(−k/2) exp(−‖z‖²/(c + 2)).
        across = (1 + 2 / k**2) ** (-k / 2) * torch.exp(-z.square().sum(1) / (k**2 + 2)).mean()
        prior = (1 + 4 / k**2) ** (-k / 2)
        return max(0.0, (pairs + prior - 2 * across).item()) ** 0.5

    return of


def information_of_one(x, latent):
    """I(z_d; x) over the enumerated data set, exact but for the draws of z."""

    @torch.no_grad()
    def of(model):
        torch.manual_seed(1)
        mean, std = (part.repeat(4, 1)[:, [latent]] for part in posterior.mean_and_std(model.posterior(x)))
        z = torch.normal(mean, std)
        own = distributions.Normal(mean, std).log_prob(z)[:, 0].double()
        return (own - posterior.log_density(z, mean[: len(x)], std[: len(x)])).mean().item()

    return of


@pytest.mark.parametrize(
    ("name", "measure", "direction"),
    [
        ("dip_vae_i", lambda x: off_diagonal(x, "mean_covariance"), "lower"),
        ("dip_vae_ii", lambda x: off_diagonal(x, "covariance"), "lower"),
        ("info_vae", unbiased_mmd, "lower"),
        ("anchor_vae", lambda x: information_of_one(x, 1), "higher"),
        ("information_dropout", correlation, "lower"),
        ("factor_vae", correlation, "lower"),
        ("beta_tcvae", correlation, "lower"),
        ("hfvae", lambda x: correlation(x, "between_groups"), "lower"),
    ],
)
def test_a_trained_row_moves_the_term_that_it_weighs(digits, plain, name, measure, direction):
    value = measure(digits.train)
    before = [value(run.model) for run in plain]
    after = [value(run.model) for run in train(digits, TRAINED[name])]
    sign = 1 if direction == "higher" else -1
    moved = sign * (statistics.fmean(after) - statistics.fmean(before))
    error = math.hypot(statistics.stdev(before), statistics.stdev(after)) / len(SEEDS) ** 0.5
    assert moved > 3 * error, (before, after)
    assert min(sign * v for v in after) > max(sign * v for v in before), (before, after)


def test_dip_vae_two_holds_the_variance_of_the_aggregate_and_one_that_of_the_means(digits):
    """λ_d alone: C_ii goes to one, of the covariance that the row looks at."""
    x = digits.train
    for kind, covariance in ((objectives.DIPVAEI, "mean_covariance"), (objectives.DIPVAEII, "covariance")):
        for run in train(digits, kind(off_diagonal=0.0, diagonal=100.0)):
            moments = estimators.moments(run.model, x)
            assert (getattr(moments, covariance).diagonal() - 1).abs().max() < 0.15


def test_capacity_holds_the_rate_at_its_target(digits):
    """At C from the start, and on a ramp over half of the training, at the target of the step all along."""
    x, steps = digits.train, LONGER.epochs * 12
    for capacity, ramp in ((3.0, 0), (5.0, steps // 2)):
        # Epoch e is the steps 12e to 12e + 11.
        targets = [capacity * min(1.0, (12 * epoch + 5.5) / ramp) for epoch in range(LONGER.epochs)] if ramp else []
        for run in train(digits, objectives.Capacity(gamma=10.0, capacity=capacity, ramp_steps=ramp)):
            with torch.no_grad():
                rate = distributions.kl_divergence(run.model.posterior(x), run.model.prior()).mean().item()
            assert rate == pytest.approx(capacity, abs=0.5)
            if ramp:
                assert run.history["rate"][2:] == pytest.approx(targets[2:], abs=0.6)  # Adam warms up before that


# ---------------------------------------------------------------- the objects


@pytest.mark.parametrize("case", CASES, ids=label)
def test_no_state_between_calls(case):
    model, x, reference, objective = tiny(), binary(4), binary(7, seed=8), build(case)
    totals = []
    for step in (0, 0, 17):
        torch.manual_seed(2)
        totals.append(objective(model, x, step=step, reference=reference).total.item())
    assert totals[0] == totals[1] == totals[2]
    assert objective == build(case)


def test_only_a_ramp_looks_at_the_step():
    model, x, fixed = tiny(), binary(4), noise(4)
    objective = objectives.Capacity(2.0, 30.0, ramp_steps=10)
    first, second, again = (objective(Still(model, fixed), x, step=step).total.item() for step in (0, 5, 0))
    assert first == again
    assert first != second


@pytest.mark.parametrize("name", objectives.TABLE)
def test_rows_are_frozen_values_that_describe_themselves(name):
    kind = objectives.TABLE[name]
    one, same = kind(), kind()
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    for field in (*(field.name for field in dataclasses.fields(kind)), "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field, 1.0)
    assert list(one.weights) == ["mutual_information", "total_correlation", "dimension_kl"]
    assert all([*one.weights.values(), one.formula, one.reference])
    assert not {"weights", "formula", "reference"} & set(dataclasses.asdict(one))
    for _, options in (case for case in CASES if case[0] == name):
        assert (kind(**options) == one) == (not options)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_save_and_load(digits, case, tmp_path):
    run = training.fit(make(), subset(digits, 16), build(case), dataclasses.replace(QUICK, epochs=1))
    folder = run.save(tmp_path / "run")
    loaded = training.load(folder)
    assert type(loaded.objective) is objectives.TABLE[case[0]]
    assert loaded.objective == run.objective
    assert hash(loaded.objective) == hash(run.objective)
    assert json.loads((folder / "run.json").read_text())["objective"]["name"] == case[0]
    x, reference = digits.train[:4], digits.train[:20]
    totals = []
    for each in (run, loaded):
        torch.manual_seed(2)
        totals.append(each.objective(each.model, x, reference=reference).total.item())
    assert totals[0] == totals[1]


def test_lists_and_numpy_numbers_are_taken():
    assert objectives.AnchorVAE(anchors=[np.int64(1), 0]) == objectives.AnchorVAE(anchors=(1, 0))
    assert objectives.HFVAE(groups=[[0, 2], [np.int64(1)]]) == objectives.HFVAE(groups=GROUPS)
    assert objectives.BetaTCVAE(beta=np.float32(4)) == objectives.BetaTCVAE(beta=4)
    assert objectives.Capacity(ramp_steps=np.int64(4)) == objectives.Capacity(ramp_steps=4)


# ---------------------------------------------------------------- bad input

NUMBERS = {
    name: [field.name for field in dataclasses.fields(kind) if field.type is float] for name, kind in objectives.TABLE.items()
}


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, several in NUMBERS.items() for number in several])
def test_bad_numbers(name, number):
    kind = objectives.TABLE[name]
    bad = ["1", "abc", None, math.nan, math.inf, -math.inf, True, [1.0], torch.tensor([1.0, 2.0])]
    for value in bad if number == "alpha" and name == "info_vae" else [*bad, -1e-9, -3]:
        one_line(lambda value=value: kind(**{number: value}), f"{number} must be a finite number")


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("alpha must be a finite number <= 1", lambda: objectives.InfoVAE(alpha=1.001)),
        ("lam must be a finite number >= 0.7", lambda: objectives.InfoVAE(alpha=0.3, lam=0.69)),
        ("lam must be a finite number >= 2", lambda: objectives.InfoVAE(alpha=-1, lam=1.9)),
        ("lr must be", lambda: objectives.FactorVAE(lr=0)),
        *(
            (f"{number} must be a whole number >= {least}", lambda n=number, k=kind, b=bad: k(**{n: b}))
            for kind, number, least in (
                (objectives.Capacity, "ramp_steps", 0),
                (objectives.FactorVAE, "width", 1),
                (objectives.FactorVAE, "depth", 1),
            )
            for bad in (-1, 1.5, "3", None, True, math.nan)
        ),
        *(("anchors must be", lambda b=bad: objectives.AnchorVAE(b)) for bad in ((), "0", 0, None, [-1], [0.5], ["0"], [True])),
        *(
            ("groups must be lists with each of the latents", lambda b=bad: objectives.HFVAE(b))
            for bad in (
                [],
                "01",
                5,
                [0, 1],
                [[0, 1], []],
                [[0, 1], [1, 2]],
                [[0], [2]],
                [[1], [2]],
                [["0"]],
                [[0.0]],
                [[-1, 0]],
            )
        ),
        *(
            ("estimator must be one of", lambda k=objectives.TABLE[name], b=bad: k(estimator=b))
            for name in ESTIMATORS
            for bad in ("none", "", None, 1, ["exact"])
        ),
    ],
)
def test_bad_arguments(match, call):
    one_line(call, match)


@pytest.mark.parametrize("estimator", LOG_Q)
def test_latents_that_the_model_does_not_have(estimator):
    model, x = tiny(), binary(4)
    for anchors in ((3,), (0, 5), (1, 1)):
        one_line(
            lambda a=anchors: objectives.AnchorVAE(a, 0.5, estimator)(model, x), "anchors must be different latents of 0 to 2"
        )
    for groups in ([[0, 1]], [[0, 1], [2, 3]]):
        one_line(lambda g=groups: objectives.HFVAE(g, estimator=estimator)(model, x), "the latents 0 to 2 in exactly one")


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in ESTIMATORS], ids=label)
def test_a_reference_that_the_batch_does_not_come_from(case):
    """Every term over a reference needs two examples; a minibatch estimator at least the batch. Other rows do not look."""
    model, x, objective, estimator = tiny(), binary(4), build(case), case[1]["estimator"]
    if estimator in (*posterior.MINIBATCH, "exact", "discriminator"):
        for n in (0, 1):
            one_line(lambda n=n: objective(model, x, reference=binary(8)[:n]), "at least two examples")
    if estimator in posterior.MINIBATCH:
        one_line(lambda: objective(model, x, reference=binary(3)), "a batch of 4 cannot come from a reference of 3")
    assert objective(model, x, reference=binary(4, seed=8)).total.isfinite()


def test_pixels_that_are_drawn_anew_have_no_exact_codes():
    grey = data.load("digits", binarize="dynamic")
    for objective in (objectives.FactorVAE(), objectives.BetaTCVAE(estimator="exact"), objectives.InfoVAE(estimator="exact")):
        one_line(lambda o=objective: training.fit(make(), grey, o, QUICK), "binarize='dynamic'")
    training.fit(make(), subset(grey, 20), objectives.BetaTCVAE(), dataclasses.replace(QUICK, epochs=1))


@pytest.mark.parametrize("name", [name for name, row in objectives.TABLE.items() if hasattr(row(), "beta") and name != "vae"])
def test_a_sweep_by_name_sets_beta_and_nothing_else(name):
    few = data.Dataset(name="few", train=(torch.rand(6, 4) > 0.5).float(), validation=torch.ones(1, 4), test=torch.ones(1, 4))
    runs = training.sweep(lambda: models.VAE((4,), 2), few, [0.5, 2.0], objective=name, config=training.TrainConfig(epochs=1))
    assert [run.objective for run in runs] == [objectives.TABLE[name](beta=beta) for beta in (0.5, 2.0)]
