from dataclasses import replace

import pytest
import torch

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
    with pytest.raises(training.Diverged) as error:
        training.fit(model := _fresh(), digits, Breaks(2.0), config)
    message = str(error.value)
    assert "step 25 (epoch 2" in message
    assert "the end of epoch 1" in message
    assert "\n" not in message
    good = training.fit(_fresh(), digits, objectives.BetaVAE(2.0), replace(config, epochs=2))
    for a, b in zip(model.parameters(), good.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert error.value.runs[0].history == good.history


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
    with pytest.raises(ValueError, match=allowed) as error:
        training.TrainConfig(**setting)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_here_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="not on this machine, which has: cpu"):
        training.TrainConfig(device="cuda")


@pytest.mark.parametrize("betas", ["[0.1, 1]", 3, [], [0.0], [-1.0], ["a"], [float("inf")], None])
def test_bad_betas(digits, betas):
    with pytest.raises(ValueError, match="beta") as error:
        training.sweep(make, digits, betas, config=CONFIG)
    assert "\n" not in str(error.value)


def test_bad_data_for_the_model(digits):
    grey = data.load("digits", binarize=None)
    for train in (
        lambda: training.fit(make(), grey, objectives.VAE(), CONFIG),
        lambda: training.sweep(make, grey, [1.0], config=CONFIG),
    ):
        with pytest.raises(ValueError, match="binarize") as error:
            train()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\)"):
        training.fit(models.VAE((1, 4, 4)), digits, objectives.VAE(), CONFIG)
    with pytest.raises(ValueError, match="vae, beta_vae"):
        training.sweep(make, digits, [1.0], objective="gan", config=CONFIG)
    training.fit(make(), data.load("digits", binarize="dynamic"), objectives.VAE(), replace(CONFIG, epochs=1))
