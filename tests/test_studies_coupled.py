"""The study of codes drawn together: the laws of the codes, what the objectives are and ask for, and what is claimed."""

import itertools
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line
from torch import distributions, nn

from nbvae import analytic, data, metrics, models, objectives, posterior, samplers, training
from studies import coupled as study
from studies import ladder, pairs
from studies.coupled import FOLLOW, MIXTURE, PAIRS, USUAL, Plan
from studies.pairs import DRAWS, Pairs

RANGE, RATIO = (0.1, 10.0), 2.0


class Watched(models.MultiBetaVAE):
    """A model that keeps what it was called with, and what its decoder said."""

    def encode(self, x, condition):
        self.q, self.log_beta = super().encode(x, condition), condition.log_beta[:, 0]
        return self.q

    def outputs(self, z, condition):
        self.z, self.out = z, super().outputs(z, condition)
        if self.out.requires_grad:
            self.out.retain_grad()
        return self.out


def made(kind=models.MultiBetaVAE, **more):
    """A model whose response to β is not the one that it begins with, which is none."""
    with training.seeded(0):
        model = kind((6,), 3, hidden=(8,), beta_range=RANGE, **more)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.3 * torch.randn_like(value))
    return model


def pixels(n: int) -> torch.Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def called(model, objective, x, seed=0):
    with training.seeded(seed):
        return objective(model, x)


@pytest.mark.parametrize("draws", DRAWS)
def test_each_code_alone_has_its_posteriors_law_and_pairs_are_tied_as_they_should(draws):
    model, n = made(Watched), 40_000
    with torch.no_grad():
        called(model, Pairs(0.0, RATIO, draws), pixels(n))
    noise = ((model.z - model.q.mean) / model.q.stddev).double()
    for each in noise.split(n):
        # Moments of a standard normal, within five of their standard errors.
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert (each.pow(power).mean(0) - moment).abs().max() < 5 * math.sqrt(variance / n)
    coarse, fine = model.log_beta.split(n)
    near = coarse > fine
    tied = pairs.correlation(draws, *model.q.stddev.split(n))
    left = (noise[:n] * noise[n:])[near] - tied[near]
    assert left.mean(0).abs().max() < 5 * math.sqrt(2 / near.sum())
    assert (noise[:n] * noise[n:])[~near].mean(0).abs().max() < 5 * math.sqrt(1 / (~near).sum())
    assert {"independent": tied.max() == 0, "same noise": tied.min() == 1, "copy": 0.1 < tied.mean() < 0.99}[draws]


def test_both_beta_are_uniform_and_neighbours_but_at_the_end_of_the_range():
    model, n = made(Watched), 1000
    with torch.no_grad():
        called(model, Pairs(0.0, RATIO, "copy"), pixels(n))
    low, high = map(math.log, RANGE)
    coarse, fine = ((each - low) / (high - low) for each in model.log_beta.split(n))
    for each in (coarse, fine):
        assert each.min() > -1e-5
        assert each.max() < 1 + 1e-5
        # One in each of n equal parts of the range, or of a range that begins elsewhere and goes round.
        assert np.abs(np.sort(each.numpy()) - (np.arange(n) + 0.5) / n).max() < 2 / n
    apart = math.log(RATIO) / (high - low)
    near = coarse >= apart
    torch.testing.assert_close((coarse - fine)[near], torch.full_like(coarse[near], apart), atol=1e-5, rtol=0)
    torch.testing.assert_close((coarse - fine)[~near], torch.full_like(coarse[~near], apart - 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("draws", DRAWS)
def test_without_its_weight_it_is_multi_beta_in_the_mean(draws):
    """At the same weights, over many batches: the value and a part of the gradient. With a weight, neither."""
    model, x, batches = made(), pixels(25), 400
    bias = model.decoder.layers[-1].bias

    def values(objective):
        found = []
        for seed in range(batches):
            total = called(model, objective, x, seed).total.mean()
            found.append(torch.cat([total[None], torch.autograd.grad(total, bias)[0]]).detach())
        return torch.stack(found).double()

    def apart(one, other):
        return (one.mean(0) - other.mean(0)) / ((one.var(0) + other.var(0)) / batches).sqrt()

    usual, own = values(objectives.MultiBeta(0.25)), values(Pairs(0.25, RATIO, draws))
    assert apart(own, usual).abs().max() < 4
    assert own.std(0)[0] < 0.05 * own.mean(0)[0]  # of a mean of 400 a factor of 1.01 would be seen
    if draws != "independent":
        assert apart(values(Pairs(0.25, RATIO, draws, 1.0)), usual)[0] > 10


def test_independent_pairs_have_no_consistency():
    model, x = made(), pixels(25)
    with_weight, without = (called(model, Pairs(0.25, RATIO, "independent", w), x).total for w in (5.0, 0.0))
    assert torch.equal(with_weight, without)


@pytest.mark.parametrize("draws", ["copy", "same noise"])
def test_consistency_is_zero_where_the_decoder_ignores_the_code_and_beta(draws):
    with training.seeded(0):
        model = models.MultiBetaVAE((6,), 3, hidden=(8,), beta_range=RANGE)  # as it begins, β changes no output
    x = pixels(50)

    def term():
        totals = [called(model, Pairs(0.25, RATIO, draws, w), x).total.mean() for w in (100.0, 0.0)]
        return (totals[0] - totals[1]).item()

    assert term() > 1e-2
    with torch.no_grad():
        model.decoder.layers[0].weight.zero_()
    assert term() == 0


@pytest.mark.parametrize("draws", ["copy", "same noise"])
def test_the_fine_image_is_held_fixed_and_only_neighbours_count(draws):
    model, x, n = made(Watched), pixels(200), 200
    found = []
    for weight in (3.0, 0.0):
        called(model, Pairs(0.25, RATIO, draws, weight), x).total.mean().backward()
        found.append(model.out.grad)
    coarse, fine = (found[0] - found[1]).split(n)
    near = model.log_beta[:n] > model.log_beta[n:]
    assert 0 < near.sum() < n
    assert fine.abs().max() == 0
    assert coarse[~near].abs().max() == 0
    assert (coarse[near].abs().amax(1) > 0).all()
    # By hand: of the coarse logits b, the gradient of KL(p(a) ‖ p(b)) is σ(b) − σ(a), times β^(−p) w/2n.
    own, other = model.out.detach().split(n)
    hand = (own.sigmoid() - other.sigmoid()) * (3 / (2 * n)) * (-0.25 * model.log_beta[:n, None]).exp()
    torch.testing.assert_close(coarse[near], hand[near], rtol=1e-3, atol=1e-7)


def test_disagreement_is_the_divergence_of_what_the_decoders_say():
    torch.manual_seed(0)
    logits, means = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    for pair in (
        [distributions.Bernoulli(logits=each, validate_args=False) for each in logits],
        [distributions.Normal(each, 0.3) for each in means],
    ):
        one, other = (distributions.Independent(each, 1, validate_args=False) for each in pair)
        torch.testing.assert_close(pairs.disagreement(one, other), distributions.kl_divergence(one, other))
        assert pairs.disagreement(one, one).abs().max() < 1e-12


@pytest.fixture(scope="module")
def oracle():
    """Optima of the linear VAE at three β, and data of it."""
    exact = analytic.LinearGaussian([2.0, 1.5, 0.8], 3)
    solved = {beta: exact.solve(beta, 0.3) for beta in (1.0, 0.5, 0.495)}
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0) * torch.tensor([2.0, 1.5, 0.8]).sqrt()
    views = {
        beta: models.VAE.from_linear(
            encoder=each.encoder, variance=each.posterior_variance, decoder=each.decoder, sigma=0.3**0.5
        ).double()
        for beta, each in solved.items()
    }
    return solved, views, x


def test_a_copy_is_the_librarys_coupling_at_the_linear_optimum(oracle):
    _, views, x = oracle
    coarse, fine = (posterior.encode(views[beta], x) for beta in (1.0, 0.5))
    through = posterior.Coupling.fit(coarse, fine, "channel").gain * fine[1]
    expected = through / (1 + through.square()).sqrt()
    torch.testing.assert_close(pairs.correlation("copy", coarse[1], fine[1]).double(), expected.double(), atol=2e-2, rtol=0)


def test_copies_ask_for_the_mean_and_the_same_noise_for_a_function_of_the_code(oracle):
    """In closed form. The best decoders of two β, s = βσ²: with copies C is what the fine code tells more, (s − s′)/2σ² for
    each latent. With the same noise it is of second order in the step from β to β′, for z′ is nearly a function of z."""
    solved, views, x = oracle

    def same(beta, fine):
        v, w = (torch.as_tensor(solved[each].posterior_variance) for each in (beta, fine))
        signal, noise = v - w, ((1 - w) * w).sqrt() - ((1 - v) * v).sqrt()
        return (torch.tensor([2.0, 1.5, 0.8]) * (signal.square() + noise.square())).sum().item() / (2 * 0.3)

    for beta, fine in ((1.0, 0.5), (0.5, 0.495)):
        pair = views[beta], views[fine]
        assert study.disagreements(*pair, x, "copy", 0) == pytest.approx(3 * (beta - fine) / 2, rel=0.05)
        assert study.disagreements(*pair, x, "same noise", 0) == pytest.approx(same(beta, fine), rel=0.05)
        assert study.disagreements(*pair, x, "independent", 0) > study.disagreements(*pair, x, "copy", 0)
    assert same(0.5, 0.495) < 0.01 * 3 * 0.005 / 2


SETTINGS = {
    **{"ratio": 2.0, "weight": 1.0, "lowest": 0.05, "highest": 4.0, "power": 0.25, "passes": 1, "latent_dim": 2},
    **{"hidden": [8], "batch": 50, "lr": 4e-3, "store": None, "device": "cpu"},
}


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_every_kind_is_trained_in_one_stack_as_it_would_be_alone(caplog):
    """A sweep that cannot do so trains one model after the other, in many times the time."""
    ds = data.load("digits").first(100)
    with caplog.at_level(logging.WARNING):
        every = {kind: study.train(ds, kind, seeds=[0, 1], **SETTINGS) for kind in study.KINDS}
    assert "one after the other" not in caplog.text
    for one, other in itertools.combinations(every, 2):
        assert not torch.equal(weights(every[one][0]), weights(every[other][0]))
    assert not torch.equal(weights(every[FOLLOW][0]), weights(every[FOLLOW][1]))
    [alone] = study.train(ds, FOLLOW, seeds=[1], **SETTINGS)
    torch.testing.assert_close(weights(alone), weights(every[FOLLOW][1]), atol=1e-5, rtol=1e-3)


def test_what_is_measured_is_the_model_that_was_trained():
    """A record's rows once more, by the library's own calls."""
    shape = {"ladder": [1.0, 0.1], "recursion": [2.0, 1.0, 0.1], "components": 1, "draws": 1, "measured": 2, "drawn": 60}
    shape |= {"neighbours": 3, "nearest": 60, "resamplings": 2}
    of = {"dataset": "digits", "binarize": "default", "images": 100}
    frame = pd.DataFrame(study.measure(kind=FOLLOW, seeds=[3], **of, **shape, **SETTINGS)["rows"])
    ds = data.load("digits").first(100)
    [many] = study.train(ds, FOLLOW, seeds=[3], **SETTINGS)
    coarse, fine = many.at(1.0), many.at(0.1)
    how = {"n_components": 1, "draws": 1, "seed": 3}
    chain = samplers.Chain([coarse, fine], ds.train, coupling="channel", **how)
    value = frame.set_index(["quantity", "sampler", "beta", "split"])["value"]
    assert value["nats", "channel", 0.1, "test"] == pytest.approx(chain.rates(ds.test, 2, 3).sum().item())
    assert value["nats", ladder.ALONE, 0.1, "test"] == pytest.approx(
        samplers.Mixture(fine, ds.train, **how).rate(ds.test, 2, 3)
    )
    whole = frame[(frame["quantity"] == "frechet from") & (frame["split"] == "validation")]
    assert whole["beta"].tolist() == [2.0, 1.0]
    best = whole.loc[whole["value"].idxmin(), "beta"]
    distance = frame[frame["quantity"] == "frechet"].set_index("sampler")["value"]
    from_top = value["frechet from", study.RECURSION, 2.0, "test"]
    assert distance[study.RECURSION] == pytest.approx(from_top)
    assert distance[study.CHOSEN] == pytest.approx(value["frechet from", study.RECURSION, best, "test"])
    extract = metrics.classifier(data.load("digits"))
    drawn = samplers.Recursive(many, [2.0, 1.0, 0.1]).sample(60, torch.Generator().manual_seed(3))
    assert metrics.frechet_distance(extract(drawn), extract(ds.test)).value == pytest.approx(from_top, rel=1e-4)


# What is claimed.

NATS = {USUAL: (10.0, 10.5, 11.0), PAIRS: (10.0, 10.6, 11.0), FOLLOW: (20.0, 23.0, 22.0)}  # the last code, by channel, one step
LOSSES = {USUAL: 3.0, PAIRS: 3.0, FOLLOW: 5.0}  # at two β, of which the second has one nat more
DISTANCES = {USUAL: (4.0, 1.0), PAIRS: (4.0, 1.0), FOLLOW: (2.0, 1.0)}  # of the recursion and the mixture


def rows(passes=4, nats=NATS, losses=LOSSES, distances=DISTANCES, noise=0.0) -> pd.DataFrame:
    """Rows of three seeds, which multiply what is compared by ratios."""
    found = []
    for seed, kind in itertools.product(range(3), nats):
        place = {"objective": kind, "seed": seed, "passes": passes, "split": "test", "sampler": None, "level": None}
        shift = noise * (seed - 1) * (kind != USUAL)
        for name, value in zip((ladder.ALONE, "channel", ladder.STEP), nats[kind], strict=True):
            found.append(place | {"quantity": "nats", "sampler": name, "level": 10.0, "beta": 0.1, "value": value * (1 + seed)})
        for more, beta in ((0.0, 1.0), (1.0, 0.1)):
            found.append(place | {"quantity": "loss", "beta": beta, "value": losses[kind] + more + seed + shift})
            found.append(place | {"quantity": "distortion", "beta": beta, "value": 2 * losses[kind] + more})
            found.append(place | {"quantity": "loss", "split": "train", "beta": beta, "value": 100.0})
        found.append(place | {"quantity": "by channel", "beta": 0.1, "value": 0.9})
        for name, value in zip((study.RECURSION, MIXTURE), distances[kind], strict=True):
            found.append(place | {"quantity": "frechet", "sampler": name, "beta": None, "value": value * (1 + seed)})
    return pd.DataFrame(found)


def test_effects_are_differences_from_training_as_usual_and_from_pairs_seed_by_seed():
    changes = study.effects(rows(), 10)
    table = changes.groupby(study.PLACE)["value"].agg(["mean", "std", "size"])
    assert (table["size"] == 3).all()
    assert table["std"].max() < 1e-9
    mean = table["mean"]
    assert mean["overhead", USUAL, FOLLOW, "channel"] == pytest.approx(0.15 - 0.05)
    assert mean["overhead", PAIRS, FOLLOW, "channel"] == pytest.approx(0.15 - 0.06)
    assert mean["overhead", USUAL, PAIRS, "channel"] == pytest.approx(0.01)
    assert mean["regret", USUAL, FOLLOW, ""] == pytest.approx(2)
    assert mean["last distortion", USUAL, FOLLOW, ""] == pytest.approx(4)
    assert mean["alignment", USUAL, FOLLOW, ""] == 0
    assert mean["frechet", USUAL, FOLLOW, study.RECURSION] == pytest.approx(math.log(0.5))
    assert mean["frechet", MIXTURE, FOLLOW, study.RECURSION] == pytest.approx(math.log(2))
    assert mean["frechet", MIXTURE, USUAL, study.RECURSION] == pytest.approx(math.log(4))
    assert not {("frechet", USUAL, USUAL, study.RECURSION), ("frechet", MIXTURE, USUAL, MIXTURE)} & set(mean.index)
    claims = study.claimed(changes[changes["passes"] == 4]).set_index(study.PLACE).index
    assert ("regret", USUAL, FOLLOW, "") in claims
    assert ("overhead", USUAL, PAIRS, "channel") not in claims  # clear, and too small to matter
    assert ("alignment", USUAL, FOLLOW, "") not in claims


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True, True]),
        ({"losses": LOSSES | {FOLLOW: 9.0}}, [True, True, True]),  # farther on the same side
        ({"losses": LOSSES | {FOLLOW: 2.0}}, [False, True, True]),
        ({"distances": DISTANCES | {FOLLOW: (0.5, 1.0)}}, [False, True, True]),
        ({"nats": NATS | {FOLLOW: (20.0, 20.8, 22.0)}}, [False, True, True]),
    ],
)
def test_twice_the_passes_must_leave_sides(changes, passed):
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    frame = pd.concat([rows(4), rows(8, **changes)])
    assert [each.passed for each in study._checks(plan, frame)] == passed


def test_a_side_that_turns_is_a_failure_unless_the_plan_says_that_it_is_not_claimed():
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    frame = pd.concat([rows(4), rows(8, losses=LOSSES | {FOLLOW: 2.0})])
    turned = study._checks(plan, frame)[0]
    assert not turned.passed
    names = tuple(f"regret {than} {FOLLOW}" for than in (USUAL, PAIRS))
    assert not study._checks(plan.changed(unclaimed=names[:1]), frame)[0].passed
    names += tuple(f"last distortion {than}" for than in (USUAL, PAIRS))
    left = study._checks(plan.changed(unclaimed=names), frame)[0]
    assert left.passed
    assert left.found.endswith("not claimed are " + ", ".join(names))


def test_errors_that_are_too_large_to_see_a_regret_fail():
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    frame = pd.concat([rows(4, noise=1.0), rows(8, noise=1.0)])
    assert [each.passed for each in study._checks(plan, frame)][1:] == [False, True]


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_models_are_those_of_the_study_of_ladders(dataset):
    """But for the range of β: on the digits recursion has to begin where the prior is near."""
    own, other = study.plan(dataset, "full"), ladder.plan(dataset, "full")
    for name in ("binarize", "images", "ladder", "lowest", "power", "latent_dim", "hidden", "batch", "lr"):
        assert getattr(own, name) == getattr(other, name)
    assert own.highest == (16 if dataset == "digits" else other.highest)
    assert len(own.seeds) >= (5 if dataset == "digits" else 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ladder": (1.0,)}, "at least two βs that fall"),
        ({"recursion": (0.1, 1.0)}, "at least two βs that fall"),
        ({"recursion": (2.0, 0.1)}, "must end at the last β"),
        ({"lowest": 0.1}, "the whole ladder"),
        ({"kinds": (USUAL, FOLLOW)}, "kinds must differ and have"),
        ({"kinds": (USUAL, PAIRS, PAIRS)}, "kinds must differ and have"),
        ({"kinds": (USUAL, PAIRS, "another")}, "a kind must be"),
        ({"ratio": 1.0}, "ratio must be above 1"),
        ({"ratio": 1e6}, "ratio must be above 1"),
        ({"weight": -1.0}, "weight must"),
        ({"unclaimed": ("regret",)}, "must begin with one of overhead as usual"),
        ({"largest_error": 0.0}, "largest_error"),
        ({"again": 1}, "at least two seeds"),
        ({"seeds": (0, 1), "again": 3}, "at least two seeds"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(changes, said):
    one_line(lambda: Plan(**changes), said)
