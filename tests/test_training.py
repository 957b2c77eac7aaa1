from dataclasses import replace

import numpy as np
import pytest
import torch
from errors import one_line
from torch import distributions, nn

from nbvae import data, models, objectives, training

CONFIG = training.TrainConfig(epochs=3, batch_size=128, lr=1e-3, schedule="cosine")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def make(network="mlp", likelihood="bernoulli", sigma=None):
    return models.VAE((1, 8, 8), latent_dim=4, network=network, likelihood=likelihood, sigma=sigma, hidden=(16,)).double()


def separate(build, dataset, run):
    torch.manual_seed(run.config.seed)
    return training.fit(build(), dataset, run.objective, run.config)


def assert_same(run, other):
    for (name, a), b in zip(run.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0, msg=name)
    for term, values in run.history.items():
        assert values == pytest.approx(other.history[term], rel=1e-9)


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize(("betas", "seeds"), [((0.3, 1.0, 4.0), (0,)), ((1.0,), (0, 1, 2)), ((0.5, 2.0), (3, 5))])
def test_sweep_equals_separate_fits(digits, network, betas, seeds):
    runs = training.sweep(lambda: make(network), digits, betas, seeds=seeds, config=CONFIG)
    assert [(run.objective.beta, run.config.seed) for run in runs] == [(beta, seed) for beta in betas for seed in seeds]
    fits = [separate(lambda: make(network), digits, run) for run in runs]
    for run, other in zip(runs, fits, strict=True):
        assert_same(run, other)
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert all(not torch.allclose(weights[0], other, atol=1e-4) for other in weights[1:])  # different, not one model K times


def test_sweep_over_sigma_equals_separate_fits():
    grey = data.load("digits", binarize=None)
    runs = training.sweep(
        lambda sigma: make(likelihood="gaussian", sigma=sigma),
        grey,
        [0.5, 2.0],
        sigmas=[0.2, 0.6],
        seeds=(0, 1),
        config=CONFIG,
    )
    assert len(runs) == 8
    for run in runs:
        sigma = run.model.config["sigma"]
        assert_same(run, separate(lambda s=sigma: make(likelihood="gaussian", sigma=s), grey, run))


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "sgd", "lr": 1e-4}, {"optimizer": "adamw", "weight_decay": 0.3}, {"weight_decay": 0.3}, {"clip": 2.0}],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_optimizer_is_the_one_of_torch_alone_and_in_a_sweep(digits, options):
    """Against a loop by hand with torch's optimiser and `clip_grad_norm_`, which no line of the library calls."""
    config = replace(CONFIG, epochs=1, schedule="constant", **options)
    runs = training.sweep(make, digits, [0.5, 3.0], seeds=(0, 1), config=config)
    for run in runs:
        torch.manual_seed(run.config.seed)
        model = make()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.optimizer]
        optimiser = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        norms = []
        with training.seeded(run.config.seed):
            order = torch.randperm(len(digits.train))
            for index in order.split(config.batch_size):
                loss = run.objective(model, digits.train[index]).total
                optimiser.zero_grad()
                loss.backward()
                most = float("inf") if config.clip is None else config.clip
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), most).item())
                optimiser.step()
        for (name, a), b in zip(run.model.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=0, msg=name)
        if config.clip is not None:
            assert max(norms) > config.clip  # or nothing was tested
        assert_same(run, separate(make, digits, run))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("per_group", [1, 2, 4])
def test_sweep_in_several_groups_is_the_same_sweep(digits, monkeypatch, per_group):
    whole = training.sweep(make, digits, [0.5, 1, 2], seeds=(0, 1), config=CONFIG)
    monkeypatch.setattr(training._sweep, "_GROUP", per_group * sum(p.numel() for p in make().parameters()))
    for run, other in zip(training.sweep(make, digits, [0.5, 1, 2], seeds=(0, 1), config=CONFIG), whole, strict=True):
        assert_same(run, other)
        assert run.config == other.config
        assert run.objective == other.objective
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("count", "size", "threads"), [(1, 10, 2), (16, 829_232, 2), (36, 829_232, 2), (3, 10**8, 2), (7, 10**7, 4)]
)
def test_groups_hold_every_model_once_and_fill_the_threads(count, size, threads):
    groups = training._sweep._groups(count, size, threads)
    assert [index for group in groups for index in group] == list(range(count))
    assert all(len(group) * size <= training._sweep._GROUP or len(group) == 1 for group in groups)
    assert len(groups) in (1, count) or len(groups) % threads == 0


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_one_group_ends_the_others(digits, monkeypatch):
    """Two groups of which the first fails at once: the second, of a million epochs, must end too."""
    monkeypatch.setattr(training._sweep, "_GROUP", 1)

    class Fails(objectives.BetaVAE):
        def __call__(self, model, x, step=0, reference=None):
            if self.beta == 1.0:
                raise RuntimeError("on purpose")
            return super().__call__(model, x)

    with pytest.raises(RuntimeError, match="on purpose"):
        training.sweep(make, digits, [1.0, 2.0], objective=Fails, config=replace(CONFIG, epochs=10**6))


def test_dynamic_binarisation_draws_anew_and_equally_in_fit_and_sweep():
    grey = data.load("digits", binarize="dynamic")
    runs = training.sweep(make, grey, [1.0, 2.0], seeds=(0, 1), config=CONFIG)
    for run in runs:
        assert_same(run, separate(make, grey, run))


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_stream(digits):
    state = torch.random.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        with training.seeded(7):
            model = make()
        runs.append(training.fit(model, digits, objectives.VAE(), replace(CONFIG, seed=seed)))
    assert torch.equal(state, torch.random.get_rng_state())
    same = [
        [torch.equal(a, b) for a, b in zip(runs[0].model.parameters(), run.model.parameters(), strict=True)] for run in runs
    ]
    assert all(same[1])
    assert not any(same[2])


def test_a_fit_by_hand_is_the_same_fit(digits):
    """Independent derivation: the loop written out with torch alone."""
    torch.manual_seed(0)
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    config = replace(CONFIG, schedule="constant", batch_size=500)  # 500 + 500 + 200: the last batch is smaller
    run = training.fit(model, digits, objectives.BetaVAE(2.0), config)
    torch.manual_seed(config.seed)
    adam = torch.optim.Adam(twin.parameters(), lr=config.lr)
    means = []
    for _ in range(config.epochs):
        order, values = torch.randperm(1200), []
        for start in range(0, 1200, 500):
            x = digits.train[order[start : start + 500]].double().flatten(1)
            mean, log_variance = twin.encoder.body(x).chunk(2, -1)
            z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, dtype=torch.float64)
            logits = twin.decoder(z)
            distortion = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
            rate = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(-1)
            adam.zero_grad()
            (distortion.mean() + 2 * rate.mean()).backward()
            adam.step()
            values.append(torch.stack([distortion, rate]).detach())
        means.append(torch.cat(values, -1).mean(-1))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert run.history["distortion"] == pytest.approx([mean[0].item() for mean in means])
    assert run.history["rate"] == pytest.approx([mean[1].item() for mean in means])
    assert run.history["loss"] == pytest.approx([(mean[0] + 2 * mean[1]).item() for mean in means])


@pytest.mark.parametrize("schedule", training.SCHEDULES)
def test_training_lowers_the_loss(digits, schedule):
    run = training.fit(make(), digits, objectives.VAE(), replace(CONFIG, epochs=10, lr=3e-3, schedule=schedule))
    assert run.history["loss"][-1] < run.history["loss"][0] - 5


def test_schedules_end_where_they_should():
    for schedule, last in (("cosine", 0.0), ("one_cycle", 1e-2 / 25 / 1e4)):
        optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-2)
        scheduler = training._loop._schedule(optimiser, replace(CONFIG, schedule=schedule, lr=1e-2), 50)
        rates = []
        for step in range(50):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            if step < 49:
                scheduler.step()
        assert max(rates) == pytest.approx(1e-2, rel=0.02)
        assert rates[-1] == pytest.approx(last, abs=2e-5)


class Breaks(objectives.BetaVAE):
    """A β-VAE whose loss is not finite in step 25 for β above 1."""

    def __call__(self, model, x, step=0, reference=None):
        loss = super().__call__(model, x)
        bad = torch.as_tensor(self.beta) > 1
        return loss._replace(total=torch.where(bad & torch.tensor(step == 25), torch.nan, loss.total))


def test_a_loss_that_is_not_finite_names_its_first_step_and_keeps_the_last_good_state(digits):
    config = replace(CONFIG, epochs=6, schedule="constant")  # ten steps an epoch
    model, said = _fresh(), ("step 25 (epoch 2", "the end of epoch 1")
    error = one_line(lambda: training.fit(model, digits, Breaks(2.0), config), *said, error=training.Diverged)
    good = training.fit(_fresh(), digits, objectives.BetaVAE(2.0), replace(config, epochs=2))
    for a, b in zip(model.parameters(), good.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert error.runs[0].history == good.history


def _fresh():
    torch.manual_seed(0)
    return make()


def test_one_diverged_model_of_a_sweep_does_not_spoil_the_others(digits):
    config = replace(CONFIG, epochs=6, schedule="constant")
    with pytest.raises(training.Diverged, match="step 25 ") as error:
        training.sweep(make, digits, [0.5, 2.0, 1.0], objective=Breaks, config=config)
    fine, bad, also_fine = error.value.runs
    for run in (fine, also_fine):
        assert_same(run, separate(make, digits, replace(run, objective=objectives.BetaVAE(run.objective.beta))))
    assert_same(bad, separate(make, digits, replace(bad, objective=objectives.BetaVAE(2.0), config=replace(config, epochs=2))))


def test_weights_that_are_spoilt_by_the_last_step_are_found(digits):
    class Infinite(objectives.VAE):
        def __call__(self, model, x, step=0, reference=None):
            loss = super().__call__(model, x)
            # A finite loss with an infinite gradient.
            return loss._replace(total=loss.total + 0 * (loss.total * 0).sqrt() if step == 9 else loss.total)

    model = make()
    with pytest.raises(training.Diverged, match="weights are not finite after step 9 "):
        training.fit(model, digits, Infinite(), replace(CONFIG, epochs=1))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"epochs": "abc"}, "epochs must be a whole number >= 1"),
        ({"epochs": 0}, "epochs must be"),
        ({"epochs": 2.5}, "epochs must be"),
        ({"epochs": True}, "epochs must be"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"lr": 0}, "lr must be a finite number > 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": "abc"}, "lr must be"),
        ({"schedule": "step"}, "constant, cosine, one_cycle"),
        ({"optimizer": "lbfgs"}, "adam, adamw, sgd"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0"),
        ({"clip": 0}, "clip must be a finite number > 0"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"seed": "x"}, "seed must be"),
        ({"device": "gpu"}, "auto, cpu, cuda, mps"),
        ({"device": 3}, "auto, cpu, cuda, mps"),
        ({"device": ["cpu"]}, "auto, cpu, cuda, mps"),
    ],
)
def test_bad_config(setting, allowed):
    one_line(lambda: training.TrainConfig(**setting), allowed)


def test_a_device_that_is_not_here_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="not on this machine, which has: cpu"):
        training.TrainConfig(device="cuda")


@pytest.mark.parametrize("betas", ["[0.1, 1]", 3, [], [0.0], [-1.0], ["a"], [float("inf")], None])
def test_bad_betas(digits, betas):
    one_line(lambda: training.sweep(make, digits, betas, config=CONFIG), "beta")


def test_bad_data_for_the_model(digits):
    grey = data.load("digits", binarize=None)
    for train in (
        lambda: training.fit(make(), grey, objectives.VAE(), CONFIG),
        lambda: training.sweep(make, grey, [1.0], config=CONFIG),
    ):
        one_line(train, "binarize")
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\)"):
        training.fit(models.VAE((1, 4, 4)), digits, objectives.VAE(), CONFIG)
    with pytest.raises(ValueError, match="vae, beta_vae"):
        training.sweep(make, digits, [1.0], objective="gan", config=CONFIG)
    training.fit(make(), data.load("digits", binarize="dynamic"), objectives.VAE(), replace(CONFIG, epochs=1))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (lambda model, ds: (ds, model, objectives.VAE()), "first argument is the model"),
        (lambda model, ds: (models.VAE, ds, objectives.VAE()), r"VAE\(...\) makes one"),
        (lambda model, ds: (torch.nn.Linear(64, 2), ds, objectives.VAE()), "posterior"),
        (lambda model, ds: (make().requires_grad_(False), ds, objectives.VAE()), "nothing to train"),
        (lambda model, ds: (model, ds.train, objectives.VAE()), "data.Dataset"),
        (lambda model, ds: (model, torch.utils.data.DataLoader(ds.train), objectives.VAE()), "data.Dataset"),
        (lambda model, ds: (model, {"train": ds.train}, objectives.VAE()), "data.Dataset"),
        (lambda model, ds: (model, "digits", objectives.VAE()), r"data\.load"),
        (lambda model, ds: (model, ds, objectives.VAE), r"VAE\(\)"),
        (lambda model, ds: (model, ds, "gan"), "vae, beta_vae"),
        (lambda model, ds: (model, ds, 1.0), "function of"),
        (lambda model, ds: (model, ds, None), "function of"),
        (lambda model, ds: (model, ds, lambda model, x: 0), "called as objective"),
        (lambda model, ds: (model, ds, objectives.VAE(), {"epochs": 1}), r"TrainConfig\(\*\*config\)"),
        (lambda model, ds: (model, ds, objectives.VAE(), 3), "TrainConfig"),
        (lambda model, ds: (model, ds, objectives.MultiBeta()), "MultiBetaVAE"),
        (lambda model, ds: (model, ds, objectives.VAE(), CONFIG, 3), "on_epoch"),
    ],
)
def test_first_mistakes_in_fit_are_answered_in_one_line_before_training(digits, arguments, cure):
    model = make()
    before = [parameter.clone() for parameter in model.parameters()]
    one_line(lambda: training.fit(*arguments(model, digits)), match=cure)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"make": models.VAE((1, 8, 8), 2)}, "function that returns a new model"),
        ({"make": 3}, "function that returns a new model"),
        ({"make": lambda: None}, "torch module"),
        ({"make": lambda: objectives.VAE()}, "torch module"),
        ({"dataset": torch.zeros(3, 4)}, "data.Dataset"),
        ({"config": {"epochs": 3}}, "TrainConfig"),
        ({"betas": None}, "either betas"),
        ({"objectives": [objectives.VAE()]}, "either betas"),
        ({"betas": None, "objectives": [objectives.VAE()], "objective": "vae"}, "belongs to betas"),
        ({"betas": None, "objectives": []}, "at least one"),
        ({"betas": None, "objectives": objectives.VAE()}, "must be a list"),
        ({"betas": None, "objectives": [objectives.VAE]}, r"VAE\(\)"),
        ({"betas": None, "objectives": ["gan"]}, "vae, beta_vae"),
        ({"objective": "multi_beta"}, r"objectives=\[...\]"),
        ({"objective": objectives.VAE()}, "function from β"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": [2**64]}, "seed must be"),
        ({"sigmas": []}, "sigmas must be a list"),
    ],
)
def test_first_mistakes_in_sweep_are_answered_in_one_line(digits, arguments, cure):
    one_line(
        lambda: training.sweep(**{"make": make, "dataset": digits, "betas": [1.0, 2.0], "config": CONFIG} | arguments),
        match=cure,
    )


@pytest.mark.parametrize(
    "returned",
    [
        lambda terms: terms.distortion.mean(),
        lambda terms: (terms.distortion.mean(), terms),
        lambda terms: objectives.Loss(0.0, terms),
        lambda terms: objectives.Loss(terms.distortion.mean(), terms.rate),
        lambda terms: objectives.Loss(terms.distortion[:3], terms),
        lambda terms: objectives.Loss(terms.distortion.mean(), objectives.Terms(terms.distortion.mean(), terms.rate.mean())),
        lambda terms: objectives.Loss(terms.distortion.unsqueeze(0), terms),
    ],
)
def test_an_objective_that_returns_something_else_is_told_what_is_wanted(digits, returned):
    def mine(model, x, step=0, reference=None):
        return returned(objectives.elbo_terms(model, x))

    for train in (
        lambda: training.fit(make(), digits, mine, CONFIG),
        lambda: training.sweep(make, digits, objectives=[mine], seeds=(0, 1), config=CONFIG),
    ):
        one_line(train, "objective", "mine")


def test_a_model_of_many_betas_says_how_it_is_trained(digits):
    many = models.MultiBetaVAE(digits.shape, 2)
    one_line(lambda: training.fit(many, digits, objectives.VAE(), CONFIG), "MultiBeta")


def test_seeds_up_to_the_largest_that_torch_takes(digits):
    training.fit(make(), digits, objectives.VAE(), training.TrainConfig(epochs=1, seed=2**63 - 1))
    for seed in (2**63, 2**64, -1):
        one_line(lambda seed=seed: training.TrainConfig(seed=seed), "seed must be a whole number >= 0")


def test_names_are_objectives_with_their_defaults(digits):
    config = replace(CONFIG, epochs=1)
    assert training.fit(make(), digits, "beta_tcvae", config).objective == objectives.BetaTCVAE()
    runs = training.sweep(make, digits, objectives=["vae", objectives.BetaVAE(2.0)], config=config)
    assert [run.objective for run in runs] == [objectives.VAE(), objectives.BetaVAE(2.0)]
    for run in runs:
        assert_same(run, separate(make, digits, run))


def test_the_short_form_of_sweep_is_the_long_one(digits):
    config = replace(CONFIG, epochs=1)
    short = training.sweep(make, digits, [0.5, 2.0], seeds=(0, 1), config=config)
    for a, b in zip(short, training.sweep(
        make, digits, objectives=[objectives.BetaVAE(0.5), objectives.BetaVAE(2.0)], seeds=(0, 1), config=config
    ), strict=True):  # fmt: skip
        assert (a.objective, a.config) == (b.objective, b.config)
        assert_same(a, b)


def test_objectives_of_several_kinds_in_one_sweep(digits):
    kinds = [
        objectives.BetaVAE(0.5),
        objectives.BetaTCVAE(beta=2.0),
        objectives.BetaVAE(2.0),
        objectives.Capacity(ramp_steps=3),
        objectives.Capacity(ramp_steps=4),
        objectives.FactorVAE(lr=1e-3, width=8),
        objectives.FactorVAE(lr=1e-2, width=8),
    ]
    runs = training.sweep(make, digits, objectives=kinds, seeds=(0, 1), config=replace(CONFIG, epochs=1))
    assert [(run.objective, run.config.seed) for run in runs] == [(kind, seed) for kind in kinds for seed in (0, 1)]
    for run in runs:
        assert_same(run, separate(make, digits, run))


def test_models_of_several_architectures_in_one_sweep(digits):
    def build(sigma):
        return models.VAE((1, 8, 8), 2, "linear" if sigma > 1 else "mlp", "gaussian", sigma=sigma, hidden=(4,)).double()

    runs = training.sweep(build, digits, [1.0, 2.0], sigmas=[0.5, 2.0], config=replace(CONFIG, epochs=1))
    for run in runs:
        assert_same(run, separate(lambda sigma=run.model.config["sigma"]: build(sigma), digits, run))


def test_a_new_model_is_asked_for_each_time(digits):
    one, encoder = make(), torch.nn.Linear(64, 8).double()

    def half(frozen):
        encoder.requires_grad_(not frozen)
        return models.VAE((1, 8, 8), 4, encoder=torch.nn.Sequential(torch.nn.Flatten(), encoder), hidden=(4,)).double()

    for shared in (lambda: one, lambda: half(frozen=False)):
        one_line(
            lambda shared=shared: training.sweep(shared, digits, [0.5, 2.0], config=CONFIG),
            "make() must return a new model each time",
        )
    # A part that is not trained may be one and the same.
    runs = training.sweep(lambda: half(frozen=True), digits, [0.5, 2.0], config=CONFIG)
    for run in runs:
        assert_same(run, separate(lambda: half(frozen=True), digits, run))


def test_training_is_in_training_mode_wherever_it_starts(digits):
    modes = []

    class Watched(torch.nn.Identity):
        def forward(self, x):
            if torch.is_grad_enabled():  # it is looked at before, in evaluation mode
                modes.append(self.training)
            return x

    def watched():
        model = make()
        model.encoder = torch.nn.Sequential(Watched(), model.encoder)
        return model.eval()

    runs = [
        training.fit(watched(), digits, objectives.VAE(), CONFIG),
        *training.sweep(watched, digits, [0.5, 2.0], config=CONFIG),
    ]
    assert all(modes)
    assert all(part.training for run in runs for part in run.model.modules())


@pytest.mark.parametrize("scale", [1680.0, 4000.0, -9999.0])
def test_data_on_a_wild_scale_are_told_so_once_and_at_once(scale):
    x = torch.rand(40, 6) * scale
    ds = data.Dataset("wild", x, x, x)
    config = training.TrainConfig(epochs=10**6, batch_size=20)  # not at the end of it

    def build():
        return models.VAE((6,), 3, likelihood="gaussian", sigma="global")

    torch.manual_seed(0)
    cure, diverged = f"scale the data, which reach {x.abs().max():.4g}", training.Diverged
    error = one_line(lambda: training.fit(build(), ds, objectives.VAE(), config), cure, error=diverged)
    assert "smaller lr" not in str(error)
    error = one_line(
        lambda: training.sweep(build, ds, [0.5, 1.0, 2.0], seeds=range(12), config=config), "and 35 others", error=diverged
    )
    assert str(error).count("reach") == 1
    assert len(error.runs) == 36


def test_a_buffer_may_hold_infinities(digits):
    model = make()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert len(training.fit(model, digits, objectives.VAE(), CONFIG).history["loss"]) == CONFIG.epochs


def test_a_callback_sees_each_epoch(digits):
    seen = []
    run = training.fit(make(), digits, objectives.VAE(), CONFIG, on_epoch=lambda *each: seen.append(each))
    assert [epoch for epoch, _ in seen] == list(range(CONFIG.epochs))
    for epoch, history in seen:
        assert history == {name: values[: epoch + 1] for name, values in run.history.items()}


def test_validation_is_a_measurement_beside_the_training(digits):
    """Distortion and rate are what the trained model has, and training does not notice."""
    config = replace(CONFIG, epochs=4, validate_every=2)
    plain = [separate(make, digits, replace_config(run, validate_every=None)) for run in training.sweep(
        make, digits, [0.5, 2.0], seeds=(0, 1), config=replace(config, epochs=4))]  # fmt: skip
    runs = training.sweep(make, digits, [0.5, 2.0], seeds=(0, 1), config=config)
    for run, other in zip(runs, plain, strict=True):
        for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
        assert run.history["validation_epoch"] == [1, 3]
        with torch.no_grad():
            rate = objectives.elbo_terms(run.model, digits.validation).rate.mean().item()
        assert run.history["validation_rate"][-1] == pytest.approx(rate, rel=1e-9)
        beta = run.objective.beta
        for loss, distortion, rate in zip(
            *(run.history[f"validation_{n}"] for n in ("loss", "distortion", "rate")), strict=True
        ):
            assert loss == pytest.approx(distortion + beta * rate, rel=1e-9)
        assert_same(run, separate(make, digits, run))


class Adjusts:
    """A multiplier that every call moves, towards a distortion that is asked for: an objective with a state of its own."""

    def __init__(self):
        self.weight, self.seen = 1.0, []

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        self.weight *= 1.01 if terms.distortion.mean().item() > 20 else 0.99
        self.seen.append(step)
        return objectives.Loss(terms.rate + self.weight * terms.distortion, terms)


def test_validation_does_not_move_the_state_of_an_objective(digits):
    runs = []
    for every in (None, 1):
        torch.manual_seed(0)
        runs.append(training.fit(make(), digits, Adjusts(), replace(CONFIG, validate_every=every)))
    assert runs[0].objective.weight == runs[1].objective.weight
    assert runs[0].objective.seen == runs[1].objective.seen == [*range(3 * 10)]
    assert runs[0].history["loss"] == runs[1].history["loss"]


def replace_config(run, **changes):
    return replace(run, config=replace(run.config, **changes))


def test_patience_stops_each_model_for_itself_and_gives_back_the_best(digits):
    few = data.Dataset("few", digits.train[:60].double(), digits.validation.double(), digits.test.double())
    config = training.TrainConfig(epochs=400, batch_size=30, lr=2e-2, validate_every=5, patience=2)
    runs = training.sweep(make, few, [0.1, 2.0], seeds=(0, 1), config=config)
    lengths = [len(run.history["loss"]) for run in runs]
    assert max(lengths) < 400
    assert len(set(lengths)) > 1
    for run in runs:
        losses = run.history["validation_loss"]
        best = min(range(len(losses)), key=losses.__getitem__)
        assert best == len(losses) - 3  # two more without a smaller one
        assert len(run.history["loss"]) == run.history["validation_epoch"][-1] + 1
        until = int(run.history["validation_epoch"][best]) + 1
        shorter = separate(make, few, replace_config(run, epochs=until, patience=None))
        assert_same_weights(run, shorter)
        assert_same(run, separate(make, few, run))


def assert_same_weights(run, other):
    for (name, a), b in zip(run.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=0, msg=name)


def test_patience_counts_validations():
    one_line(lambda: training.TrainConfig(patience=3), "validate_every")


D = torch.distributions


class Plain(torch.nn.Module):
    """A model that is no class of the library's; the tests below each spoil one of its distributions."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = torch.nn.Linear(64, 6), torch.nn.Linear(3, 64)

    def posterior(self, x):
        mean, log_std = self.encode(x.flatten(1)).chunk(2, -1)
        return D.Independent(D.Normal(mean, log_std.exp()), 1)

    def likelihood(self, z):
        return D.Independent(D.Bernoulli(logits=self.decode(z).unflatten(-1, (1, 8, 8))), 3)

    def prior(self):
        return D.Independent(D.Normal(torch.zeros(3), torch.ones(3)), 1)


@pytest.mark.parametrize(
    ("method", "spoilt", "cure"),
    [
        ("posterior", lambda it: it.base_dist, r"posterior\(x\) .*Independent"),
        ("posterior", lambda it: (it.mean, it.stddev), "got a tuple"),
        ("posterior", lambda it: D.Independent(D.Bernoulli(logits=it.mean), 1), "rsample"),
        (
            "posterior",
            lambda it: D.Independent(D.Normal(it.mean, -it.stddev), 1),
            r"posterior\(x\) of x \(2, 1, 8, 8\) fails: Expected parameter scale",
        ),
        ("posterior", lambda it: D.Independent(D.StudentT(3.0, it.mean, it.stddev), 1), "closed form"),
        ("likelihood", lambda it: it.base_dist, r"event \(1, 8, 8\), got \(\)"),
        ("likelihood", lambda it: D.Independent(it.base_dist, 1), r"event \(1, 8, 8\), got \(8,\)"),
        ("likelihood", lambda it: it.mean, "got a Tensor"),
        ("prior", lambda it: it.base_dist, r"prior\(\) must be one distribution"),
        ("prior", lambda it: D.Normal(0.0, 1.0), r"prior\(\) must be one distribution"),
        ("prior", lambda it: it.expand((1,)), r"prior\(\) must be one distribution"),
        ("prior", lambda it: 0.0, "must be a distribution"),
    ],
)
def test_distributions_of_another_shape_are_told_before_training(digits, method, spoilt, cure):
    model = Plain()
    training.fit(model, digits, objectives.VAE(), replace(CONFIG, epochs=1))
    right = getattr(model, method)
    setattr(model, method, lambda *args: spoilt(right(*args)))
    for train in (
        lambda: training.fit(model, digits, objectives.VAE(), CONFIG),
        lambda: training.sweep(lambda: model, digits, [1.0], config=CONFIG),
    ):
        one_line(train, match=cure)


@pytest.mark.parametrize("validated", [False, True])
def test_grey_pixels_under_a_bernoulli_of_ones_own_are_told_before_training(digits, validated):
    model, grey = Plain(), data.load("digits", binarize=None)
    decoded = lambda z: model.decode(z).unflatten(-1, (1, 8, 8))  # noqa: E731
    model.likelihood = lambda z: D.Independent(D.Bernoulli(logits=decoded(z), validate_args=validated), 3)
    with torch.no_grad():
        grey.train[:50].round_()  # the first examples alone would do
    for train in (
        lambda: training.fit(model, grey, objectives.VAE(), CONFIG),
        lambda: training.sweep(lambda: model, grey, [1.0], config=CONFIG),
    ):
        one_line(train, "likelihood(z)", "Bernoulli", "support", "binarize=")
    drawn = data.load("digits", binarize="dynamic")
    training.fit(model, drawn, objectives.VAE(), replace(CONFIG, epochs=1))


def test_looking_at_the_distributions_changes_nothing(digits):
    model = Plain()
    model.encode = torch.nn.Sequential(torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), model.encode)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    training._fit.accept(model, digits, objectives.VAE(), CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())


def test_a_callback_changes_nothing_but_when_training_ends(digits):
    def make_norm():
        model = make()
        model.encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64).double(), model.encoder)
        return model

    def interfere(epoch, history):
        for part in models_trained:
            part.eval()
        torch.randn(3)

    runs = []
    for callback in (None, interfere):
        torch.manual_seed(0)
        models_trained = [make_norm()]
        runs.append(training.fit(models_trained[0], digits, objectives.VAE(), CONFIG, on_epoch=callback))
    assert runs[0].history == runs[1].history
    stopped = training.fit(make(), digits, objectives.VAE(), CONFIG, on_epoch=lambda epoch, history: epoch == 1)
    assert len(stopped.history["loss"]) == 2


def test_an_objective_with_parameters_is_refused(digits):
    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log_beta = torch.nn.Parameter(torch.zeros(()))

        def forward(self, model, x, step=0, reference=None):
            terms = objectives.elbo_terms(model, x)
            return objectives.Loss(terms.distortion + self.log_beta.exp() * terms.rate, terms)

    one_line(lambda: training.fit(make(), digits, Weighted(), CONFIG), "part of the model")
    training.fit(make(), digits, Weighted().requires_grad_(False), replace(CONFIG, epochs=1))


class Holds:
    """A β-VAE of one's own that holds something beside."""

    def __init__(self, held):
        self.held = held

    def __call__(self, model, x, step=0, reference=None):
        return objectives.BetaVAE(2.0)(model, x)


HELD = {
    "a parameter": lambda: nn.Parameter(torch.zeros(())),
    "a module": lambda: nn.Linear(2, 2),
    "modules in a list": lambda: [nn.ReLU(), nn.Linear(2, 2)],
    "parameters in a dictionary": lambda: {"log_sigma": (nn.Parameter(torch.zeros(())),)},
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_weights_that_training_would_not_reach_are_told_before_it(digits, held):
    """Weights of an objective, and those of a model that stand in a list, are in no optimiser: they would stay as they are."""
    short = replace(CONFIG, epochs=1)
    model = make()
    one_line(lambda: training.fit(model, digits, Holds(held()), short), "Holds", "held", "not trained")
    one_line(lambda: training.sweep(make, digits, objectives=[Holds(held())], config=short), "Holds", "held", "not trained")
    training.fit(model, digits, Holds([model, model.decoder]), short)  # what is trained may be held as well

    model.decoder.held = [held()]
    one_line(lambda: training.fit(model, digits, objectives.VAE(), short), "decoder", "held", "not trained")
    frozen = held()
    for part in frozen if isinstance(frozen, list) else [frozen]:
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False)
            model.decoder.held = [part]
            training.fit(model, digits, Holds(part), short)


def test_data_on_a_large_scale_that_train_are_told_so(caplog):
    x = 99 * torch.rand(40, 5)
    ds = data.Dataset("large", x, x, x)
    torch.manual_seed(0)
    model = models.VAE((5,), 2, hidden=(8,), likelihood="gaussian")
    for parameter in model.encoder.parameters():
        parameter.data.mul_(0.01)  # finite at first
    training.fit(model, ds, objectives.VAE(), replace(CONFIG, lr=1e-6))
    assert [record.message for record in caplog.records] == [
        f"the data reach {x.max():.4g}: training goes better on data of about 1 "
        "(minus their mean, over their standard deviation)"
    ]


def test_validation_is_at_least_once():
    one_line(lambda: training.TrainConfig(epochs=10, validate_every=20), "validate_every must be at most epochs, 10, got 20")


@pytest.mark.parametrize("answer", [np.bool_(True), torch.tensor(True), True])
def test_any_true_ends_training(digits, answer):
    config = training.TrainConfig(epochs=5)
    run = training.fit(models.VAE(digits.shape, 2, hidden=(4,)), digits, "vae", config, on_epoch=lambda epoch, history: answer)
    assert len(run.history["loss"]) == 1


@pytest.mark.parametrize("answer", [None, False, np.bool_(False), torch.tensor(False)])
def test_nothing_else_does(digits, answer):
    config = training.TrainConfig(epochs=2)
    run = training.fit(models.VAE(digits.shape, 2, hidden=(4,)), digits, "vae", config, on_epoch=lambda epoch, history: answer)
    assert len(run.history["loss"]) == 2


def test_what_is_no_answer_of_on_epoch_is_refused_and_a_wrong_arity_before_training(digits):
    model = models.VAE(digits.shape, 2, hidden=(4,))
    with pytest.raises(ValueError, match="on_epoch returns True for training to end"):
        training.fit(model, digits, "vae", training.TrainConfig(epochs=2), on_epoch=lambda epoch, history: "stop")
    with pytest.raises(ValueError, match=r"on_epoch is a function of \(epoch, history\)"):
        training.fit(model, digits, "vae", training.TrainConfig(epochs=2), on_epoch=lambda history: None)


class WarmUp:
    def __init__(self, beta, steps):
        self.beta, self.steps = beta, steps

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + self.beta * min(1.0, step / self.steps) * terms.rate, terms)


def test_validation_has_the_loss_of_the_last_step(digits):
    """So that a warm-up does not make every validation another loss, and `patience` compares what can be compared."""
    config = training.TrainConfig(epochs=4, batch_size=400, validate_every=1)
    run = training.fit(models.VAE(digits.shape, 2, hidden=(4,)), digits, WarmUp(2.0, 4 * 3 - 1), config)
    history = {name: np.array(run.history[f"validation_{name}"]) for name in ("loss", "distortion", "rate")}
    np.testing.assert_allclose(history["loss"], history["distortion"] + 2.0 * history["rate"], rtol=1e-5)


class TorchsOwn(nn.Module):
    """Distributions with torch's default, by which they refuse parameters that are not finite."""

    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(64, 4), nn.Linear(2, 64)

    def posterior(self, x):
        mean, log_variance = self.inward(x.flatten(1)).chunk(2, -1)
        return distributions.Independent(distributions.Normal(mean, (log_variance / 2).exp()), 1)

    def likelihood(self, z):
        return distributions.Independent(distributions.Bernoulli(logits=self.outward(z).view(-1, 1, 8, 8)), 3)

    def prior(self):
        return distributions.Independent(distributions.Normal(torch.zeros(2), torch.ones(2)), 1)


def test_a_model_whose_distributions_check_their_parameters_diverges_like_any_other(digits):
    wild = training.TrainConfig(epochs=2, lr=1e12)
    said = "the loss is not finite at step 1"
    [run] = one_line(lambda: training.fit(TorchsOwn(), digits, "vae", wild), said, error=training.Diverged).runs
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_in_a_sweep_it_takes_no_other_run_with_it(digits):
    config = training.TrainConfig(epochs=2)
    with pytest.raises(training.Diverged) as caught:
        training.sweep(TorchsOwn, digits, objectives=[objectives.BetaVAE(1.0), Explodes()], config=config)
    good, bad = caught.value.runs
    assert len(good.history["loss"]) == 2
    assert not bad.history["loss"]
    with training.seeded(0):
        model = TorchsOwn()
    assert training.fit(model, digits, objectives.BetaVAE(1.0), config).history == good.history


class Explodes:
    """An objective whose gradient is infinite at the third step."""

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + terms.rate * (1e38 if step == 2 else 1.0) ** 2, terms)
