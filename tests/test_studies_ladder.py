"""The study of ladders: where models come from, what concatenation is, what is compared with what, and what is claimed."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import analytic, data, estimators, models, posterior, samplers, training
from nbvae.objectives import MultiBeta
from studies import lab, pairs
from studies import ladder as study
from studies.ladder import ALONE, APART, BRIEF, COPIES, DOWN, FILM, PRIOR, UNTRAINED, UP, Plan
from studies.objectives import schedule

LADDER = [2.0, 0.5, 0.1]
SETTINGS = {
    **{"passes": 2, "brief": 1, "brief_lr": 1e-3, "latent_dim": 2, "hidden": [8], "batch": 50, "lr": 4e-3},
    **{"lowest": 0.05, "highest": 4.0, "power": 0.0, "store": None, "device": "cpu"},
}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").first(200)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_models_that_are_trained_on_begin_as_separate_ones(digits):
    made = {kind: study.ladders(digits, kind, LADDER, seeds=[0, 1], **SETTINGS) for kind in (APART, DOWN, UP, BRIEF)}
    for seed in range(2):
        assert [len(each[seed]) for each in made.values()] == [3] * 4
        apart = made[APART][seed]
        assert torch.equal(weights(made[DOWN][seed][0]), weights(apart[0]))
        assert torch.equal(weights(made[UP][seed][-1]), weights(apart[-1]))
        assert torch.equal(weights(made[BRIEF][seed][-1]), weights(apart[-1]))
        for kind in (DOWN, UP, BRIEF):
            assert not torch.equal(weights(made[kind][seed][1]), weights(apart[1]))
        # A brief training leaves a model nearer to where it began than a long one.
        moved = [(weights(made[kind][seed][1]) - weights(apart[-1])).norm() for kind in (BRIEF, UP)]
        assert moved[0] < moved[1]
    assert not torch.equal(weights(made[APART][0][0]), weights(made[APART][1][0]))


def test_a_training_of_no_rate_leaves_a_continued_model_where_its_neighbour_is(digits):
    [made] = study.ladders(digits, BRIEF, LADDER, seeds=[0], **SETTINGS | {"brief_lr": 1e-12})
    for model in made[:-1]:
        torch.testing.assert_close(weights(model), weights(made[-1]), atol=1e-8, rtol=0)


def test_what_is_priced_is_the_test_images_under_what_was_fitted_to_training_images(digits):
    """Each way again by the library's own calls; two rungs, so that one step is the ladder by matrix."""
    [views] = study.ladders(digits, FILM, LADDER[1:], seeds=[0], **SETTINGS)
    train, test = digits.train, data.load("digits").test[:100]
    found = study.coded(views, train, test, [1, 2], draws=2, measured=3, seed=4)
    assert found[PRIOR, 0][0] == pytest.approx(estimators.evaluate(views[-1], test, n_samples=1).rate)
    for n in (1, 2):
        how = {"n_components": n, "draws": 2, "seed": 4}
        assert found[ALONE, n] == [samplers.Mixture(views[-1], train, **how).rate(test, 3, 4)]
        for way in study.COUPLINGS:
            chain = samplers.Chain(views, train, coupling=way, **how)
            assert found[way, n] == chain.rates(test, 3, 4).tolist()
        assert found[study.STEP, n] == pytest.approx(found["matrix", n])
    assert found[ALONE, 1] != found[ALONE, 2]


def test_views_of_one_model_are_at_the_betas_of_the_ladder_and_untrained_ones_are_as_made(digits):
    for name in study.MANY:
        [fresh] = study.ladders(digits, name + UNTRAINED, LADDER, seeds=[3], **SETTINGS)
        [trained] = study.ladders(digits, name, LADDER, seeds=[3], **SETTINGS)
        assert [view.beta for view in trained] == LADDER
        with training.seeded(3):
            again = study.one_model(
                study.MANY[name], {"shape": digits.shape, "latent_dim": 2, "hidden": [8]}, (SETTINGS["lowest"], 4.0)
            )
        assert torch.equal(weights(fresh[0].model), weights(again))
        assert not torch.equal(weights(trained[0].model), weights(again))


def test_training_on_copies_is_that_on_pairs_of_neighbours_of_the_ladder(digits):
    for name, usual in study.ON_COPIES.items():
        [found], [plain] = (study.ladders(digits, kind, LADDER, seeds=[3], **SETTINGS) for kind in (name, usual))
        assert not torch.equal(weights(found[0].model), weights(plain[0].model))
        shape = {"shape": digits.shape, "latent_dim": 2, "hidden": [8]}
        with training.seeded(3):
            model = study.one_model(study.MANY[usual], shape, (SETTINGS["lowest"], SETTINGS["highest"]))
        objective = pairs.Pairs(SETTINGS["power"], LADDER[0] / LADDER[1], pairs.COPY)
        config = dataclasses.replace(schedule(digits, 2, 50, 4e-3, "cpu"), seed=3)
        again = training.fit(model, digits, objective, config).model
        torch.testing.assert_close(weights(found[0].model), weights(again))


def test_concatenation_is_log_beta_as_one_more_input():
    """The same two networks written out with n + 1 and k + 1 inputs."""
    with training.seeded(0):
        model = study.one_model("concatenation", {"shape": (4,), "latent_dim": 2, "hidden": (5, 3)}, (0.1, 10.0))
    x, log_beta = torch.rand(6, 4), torch.linspace(-1, 1, 6)[:, None] * np.log(10.0)
    found = model.encode(x, model.condition(log_beta.float()))
    z = torch.randn(6, 2)
    outputs = model.outputs(z, model.condition(log_beta.float()))

    def plain(network, column, first):
        for index, layer in enumerate(network.layers):
            first = first if index == 0 else first.relu()
            weight = layer.weight if index else torch.cat([layer.weight, column.weight], 1)
            first = first @ weight.T + layer.bias
        return first

    scaled = torch.linspace(-1, 1, 6)[:, None]  # log β over the range, from −1 to 1
    mean, log_variance = plain(model.encoder, model.response.columns[0], torch.cat([x, scaled], 1)).chunk(2, 1)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.stddev, (0.5 * log_variance).exp())
    torch.testing.assert_close(outputs, plain(model.decoder, model.response.columns[1], torch.cat([z, scaled], 1)))


def test_concatenation_trains_alike_alone_and_in_a_sweep(digits):
    def make():
        return study.one_model("concatenation", {"shape": digits.shape, "latent_dim": 2, "hidden": (8,)}, (0.1, 10.0))

    config = training.TrainConfig(2, 50, 1e-3, device="cpu")
    runs = training.sweep(make, digits, objectives=[MultiBeta(), MultiBeta(0.5)], seeds=(0,), config=config)
    with training.seeded(0):
        alone = training.fit(make(), digits, MultiBeta(), config)
    torch.testing.assert_close(weights(runs[0].model), weights(alone.model))
    assert alone.history["loss"][-1] < alone.history["loss"][0]


def test_noisy_copies_of_the_linear_optimum_are_the_optima_of_larger_betas():
    """Successive refinability: the code of a β from that of a smaller one by noise alone, dropped latents included."""
    gaussian = analytic.LinearGaussian([4.0, 2.0, 0.9, 0.4], latent_dim=4)
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))

    def optimum(beta):
        best = gaussian.solve(beta=beta, sigma2=0.5)
        maps = {"encoder": best.encoder, "variance": best.posterior_variance, "decoder": best.decoder}
        return models.VAE.from_linear(**maps, sigma=0.5**0.5).float()

    fine = optimum(0.2)
    for times in (1.0, 3.0, 10.0):
        copied, wanted = study.noisy(fine, x, times).posterior(x), optimum(0.2 * times).posterior(x)
        torch.testing.assert_close(copied.variance, wanted.variance, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(copied.mean, wanted.mean, atol=1e-4, rtol=1e-4)
    dropped = wanted.variance[0] == 1
    assert dropped.tolist() == [False, False, True, True]


def test_noisy_copies_share_one_encoder_that_is_not_trained_and_have_decoders_of_their_own(digits):
    made = study.ladders(digits, COPIES, LADDER, seeds=[0, 1], **SETTINGS)
    apart = study.ladders(digits, APART, LADDER, seeds=[0, 1], **SETTINGS)
    for views, others in zip(made, apart, strict=True):
        finest = views[-1]
        assert torch.equal(weights(finest), weights(others[-1]))
        mean, std = posterior.encode(finest, digits.test)
        for view, beta in zip(views[:-1], LADDER, strict=False):
            encoder = view.encoder
            assert torch.equal(weights(encoder.encoder), weights(finest.encoder))
            assert not torch.equal(weights(view.decoder), weights(finest.decoder))
            found, spread = posterior.encode(view, digits.test)
            torch.testing.assert_close(found, encoder.scale * mean)
            torch.testing.assert_close(spread.square(), encoder.scale.square() * std.square() + encoder.noise)
            fresh = study.noisy(finest, digits.train, beta / LADDER[-1])
            better = [estimators.evaluate(each, digits.train, beta).distortion for each in (view, fresh)]
            assert better[0] < better[1]


def test_a_copy_by_channel_of_a_noisy_copy_is_a_degraded_code(digits):
    """Given the finer code the coarse one knows nothing more of x: its mean is linear in the finer code alone."""
    [views] = study.ladders(digits, COPIES, LADDER, seeds=[0], **SETTINGS)
    codes = [posterior.encode(view, digits.train) for view in views[1:]]
    coupling = posterior.Coupling.fit(*codes, "channel")
    assert coupling.cost(*codes) <= posterior.Coupling.fit(*codes, "matrix").cost(*codes) + 1e-3
    scale, noise = views[1].encoder.scale.double(), views[1].encoder.noise.double()
    torch.testing.assert_close(coupling.gain, scale / noise.sqrt(), rtol=0.05, atol=0.05)


# What is claimed.


def rows(nats: dict[tuple[str, str], float], passes: int = 4, noise: float = 0.0) -> pd.DataFrame:
    """Nats of three seeds, which multiply all by as much."""
    table = [
        {"objective": kind, "sampler": sampler, "level": 0.0 if sampler == PRIOR else 10.0, "beta": 0.1, "seed": seed}
        | {"passes": passes, "split": "test", "quantity": "nats", "value": (value + noise * (seed - 1)) * (1 + seed)}
        for seed in range(3)
        for (kind, sampler), value in nats.items()
    ]
    return pd.DataFrame(table)


NATS = {
    **{(FILM, ALONE): 10.0, (FILM, PRIOR): 12.0, (FILM, "independent"): 14.0, (FILM, "channel"): 10.5, (FILM, "matrix"): 10.5},
    **{(APART, ALONE): 20.0, (APART, "independent"): 32.0, (APART, "channel"): 30.0, (APART, "matrix"): 29.0},
}


def test_overheads_are_shares_of_the_own_last_code_and_compared_in_pairs():
    shares = study.overheads(rows(NATS), 10)
    means = shares.groupby(["objective", "sampler"])["value"].mean()
    assert means[FILM, "channel"] == pytest.approx(0.05)
    assert means[APART, "matrix"] == pytest.approx(0.45)
    assert (FILM, PRIOR) not in means.index  # it has no mixture
    apart = study.above(shares).groupby(["objective", "sampler"])["value"].agg(["mean", "std"])
    assert apart.loc[(APART, "matrix"), "mean"] == pytest.approx(0.40)
    assert apart["std"].max() < 1e-12
    assert (FILM, "channel") not in apart.index


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True, True]),
        ({(FILM, "channel"): 10.65}, [True, True, True]),  # a change of .015: .02 does not matter
        ({(FILM, "channel"): 11.0}, [False, True, True]),
        ({(APART, "matrix"): 60.0}, [True, True, True]),  # farther on the same side
        ({(APART, "matrix"): 20.5}, [True, False, True]),
    ],
)
def test_twice_the_passes_move_no_size_and_no_side(changes, passed):
    plan = Plan(passes=4, seeds=(0, 1, 2), kinds=(FILM, APART))
    frame = pd.concat([rows(NATS, 4), rows(NATS | changes, 8)])
    assert [each.passed for each in study._checks(plan, frame, rows(NATS))] == passed


def test_what_is_not_claimed_may_change_sides():
    plan = Plan(passes=4, seeds=(0, 1, 2), kinds=(FILM, APART))
    frame = pd.concat([rows(NATS, 4), rows(NATS | {(APART, "matrix"): 20.5}, 8)])
    for unclaimed, passed in (((), False), ((f"{APART} matrix",), True), ((f"{APART} channel",), False), ((APART,), True)):
        assert study._checks(plan.changed(unclaimed=unclaimed), frame, rows(NATS))[1].passed == passed


def test_errors_that_are_too_large_to_see_an_overhead_fail():
    plan = Plan(passes=4, seeds=(0, 1, 2), kinds=(FILM, APART))
    frame = pd.concat([rows(NATS, 4, 0.6), rows(NATS, 8, 0.6)])
    wide = rows({key: value for key, value in NATS.items() if key[1] != ALONE}, noise=2.0)
    whole = pd.concat([wide, rows({key: value for key, value in NATS.items() if key[1] == ALONE})])
    assert not study._checks(plan, frame, whole)[-1].passed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ladder": (1.0,)}, "at least two βs that fall"),
        ({"ladder": (0.1, 1.0)}, "at least two βs that fall"),
        ({"lowest": 0.1}, "the whole ladder"),
        ({"kinds": (APART, UP)}, "kinds must have"),
        ({"kinds": (FILM, "another")}, "a kind must be"),
        ({"components": ()}, "at least one number of Gaussians"),
        ({"unclaimed": ("another",)}, "must begin with one of one model, FiLM"),
        ({"seeds": (0,)}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(changes, said):
    one_line(lambda: Plan(**changes), said)


def test_prefixes_add_up_to_the_whole_ladder_and_are_kept_for_twice_the_passes_too(tmp_path):
    plan = study.plan("digits", "smoke").changed(kinds=(FILM, APART))
    found, n = study.run(plan, lab.Lab(tmp_path)).frame, plan.components[-1]
    nats = found[(found["quantity"] == "nats") & (found["level"] == n)].set_index(["objective", "sampler", "seed"])["value"]
    left = found[(found["quantity"] == "distortion") & (found["split"] == "test")].set_index(["objective", "seed", "beta"])
    for kind, way in ((FILM, "channel"), (APART, "matrix")):
        for seed in plan.seeds:
            mine = study.prefixes(found, n).xs((kind, seed), level=("objective", "seed"))
            assert mine.index.tolist() == list(plan.ladder)
            assert mine["nats"].iloc[-1] == pytest.approx(nats[kind, way, seed])
            assert (mine["nats"].diff().dropna() > 0).all()
            assert mine["distortion"].to_dict() == left["value"].xs((kind, seed), level=("objective", "seed")).to_dict()
    longer = study.prefixes(found, n, twice=True)
    again = study.run(plan.changed(passes=2 * plan.passes, brief=2 * plan.brief), lab.Lab(tmp_path)).frame
    trained = study.prefixes(again, n).drop([f"{FILM}{UNTRAINED}"], level="objective")
    pd.testing.assert_frame_equal(longer, trained)
    shares = study.overheads(again, n)
    shares = shares[~shares["objective"].str.endswith(UNTRAINED)].reset_index(drop=True)
    pd.testing.assert_frame_equal(study.overheads(found, n, twice=True).reset_index(drop=True), shares)
    assert (longer["distortion"] != study.prefixes(found, n).loc[longer.index, "distortion"]).all()
