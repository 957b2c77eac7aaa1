"""log q(z) against double loops in float64, and the minibatch weights against all batches that there are."""

import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from errors import one_line
from torch import distributions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbvae import _tensors, models, posterior
from nbvae.posterior import _fused, _mmd, mixture


def naive_components(z, mean, std):
    """log N(z; mean_i, std_i²) of one z (k,) under every component, by a loop, in float64."""
    logs = []
    for centre, width in zip(mean, std, strict=True):
        dimensions = zip(z, centre, width, strict=True)
        logs.append(sum(-0.5 * ((a - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi) for a, m, s in dimensions))
    return np.array(logs)


def log_sum(logs):
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


def naive(z, mean, std, own=None):
    """log (1/N) Σ_i N(z_j; i) for each z_j, or (1/(N−1)) Σ_{i≠own[j]} with `own`."""
    z, mean, std = (np.asarray(part, dtype=np.float64) for part in (z, mean, std))
    values = []
    for j, one in enumerate(z):
        # The squares as they stand: nothing is expanded here.
        logs = (-0.5 * ((one - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)).sum(1)
        if own is not None:
            logs = np.delete(logs, own[j])
        values.append(log_sum(logs) - math.log(len(logs)))
    return np.array(values)


def reference(n=200, k=3, dtype=torch.float64, width=0.3, centre=0.0):
    mean = centre + torch.randn(n, k, dtype=torch.float64)
    std = width * (0.5 * torch.randn(n, k, dtype=torch.float64)).exp()
    z = mean + std * torch.randn(n, k, dtype=torch.float64)
    return (part.to(dtype) for part in (z, mean, std))


# ---------------------------------------------------------------- log q(z) over the whole reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_density_and_leave_one_out_equal_a_double_loop(dtype):
    z, mean, std = reference(dtype=dtype, width=1.0)
    own = torch.arange(200)
    slow = np.array([log_sum(naive_components(one, mean.tolist(), std.tolist())) - math.log(200) for one in z.tolist()])
    np.testing.assert_allclose(naive(z, mean, std), slow, atol=1e-10)  # the quicker loop of the tests below is the same
    with_own, without = posterior.leave_one_out(z, mean, std, own)
    assert posterior.log_density(z, mean, std).dtype == torch.float64
    np.testing.assert_allclose(posterior.log_density(z, mean, std), slow, atol=1e-5)
    np.testing.assert_allclose(with_own, slow, atol=1e-5)
    np.testing.assert_allclose(without, naive(z, mean, std, own.tolist()), atol=1e-5)
    assert (with_own.numpy() - without.numpy() > 0.01).any()  # the two differ, so each is tested


def test_own_component_is_any_that_is_named():
    """Fewer z than components, in any order, one component for several z."""
    z, mean, std = reference(width=0.1)
    own = torch.randint(200, (31,))
    z = mean[own] + std[own] * torch.randn(31, 3, dtype=torch.float64)
    with_own, without = posterior.leave_one_out(z, mean, std, own)
    np.testing.assert_allclose(with_own, naive(z, mean, std), atol=1e-5)
    np.testing.assert_allclose(without, naive(z, mean, std, own.tolist()), atol=1e-5)
    two, _ = posterior.leave_one_out(z[:1], mean[:2], std[:2], torch.tensor([0]))
    np.testing.assert_allclose(two, naive(z[:1], mean[:2], std[:2]), atol=1e-5)


@pytest.mark.parametrize("centre", [0.0, 100.0])
@pytest.mark.parametrize("width", [1.0, 0.1, 0.03, 0.01, 0.003, 0.001, "mixed", "few narrow", "half dead"])
def test_any_width_is_within_a_thousandth_of_a_nat(width, centre):
    """Narrow posteriors cancel in the expanded squares, far z underflow: every value, not their mean, is held to 1e-3."""
    n, k = 120, 16
    mean = torch.randn(n, k, dtype=torch.float64)
    if width == "mixed":
        std = torch.empty(n, k, dtype=torch.float64).uniform_(math.log(0.001), 0).exp()
    elif width == "few narrow":
        std = torch.ones(n, k, dtype=torch.float64)
        std[:5] = 0.001
    elif width == "half dead":  # as in a trained model: some latents at the prior, the others narrow
        std = torch.ones(n, k, dtype=torch.float64)
        std[:, :8], mean[:, 8:] = 0.01, 0
    else:
        std = torch.full((n, k), width, dtype=torch.float64)
    noise = torch.randn(n, k, dtype=torch.float64)
    z = torch.cat(
        [
            mean + std * noise,  # its own
            noise,  # of the prior
            mean + 50 * std,  # far from every component
            50 * torch.randn(20, k, dtype=torch.float64),
            torch.zeros(1, k, dtype=torch.float64),
        ]
    )
    z, mean = (centre + part for part in (z, mean))
    for dtype in (torch.float64, torch.float32):
        given = [part.to(dtype) for part in (z, mean, std)]
        found = posterior.log_density(*given)
        assert found.isfinite().all()
        np.testing.assert_allclose(found, naive(*given), rtol=1e-12, atol=1e-3)
    own = torch.arange(n)
    with_own, without = posterior.leave_one_out(z[:n], mean, std, own)
    assert without.isfinite().all()
    np.testing.assert_allclose(with_own, naive(z[:n], mean, std), rtol=1e-12, atol=1e-3)
    np.testing.assert_allclose(without, naive(z[:n], mean, std, own), rtol=1e-12, atol=1e-3)


@pytest.mark.parametrize("width", [0.1, 0.2, 0.3])
def test_far_from_narrow_posteriors_rounding_stays_below_a_thousandth_of_a_nat(width):
    """Every distance up to log-densities of −10⁴, where single precision no longer holds a thousandth: it must be noticed."""
    k = 14
    mean, std = 0.15 * torch.randn(60, k, dtype=torch.float64), torch.full((60, k), width, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(600, k, dtype=torch.float64), dim=1)
    z = direction * torch.linspace(0, 140 * width, 600, dtype=torch.float64).unsqueeze(1)
    exact = naive(z, mean, std)
    assert exact.min() < -9000
    np.testing.assert_allclose(posterior.log_density(z, mean, std), exact, rtol=0, atol=1e-3)


def test_distance_from_the_origin_costs_no_precision():
    """All of it moved by 10⁵: expanded squares about the origin would be off by tenths of a nat even in float64."""
    mean, std = 1e5 + torch.randn(100, 16, dtype=torch.float64), torch.full((100, 16), 0.01, dtype=torch.float64)
    z = mean + std * torch.randn(100, 16, dtype=torch.float64)
    np.testing.assert_allclose(posterior.log_density(z, mean, std), naive(z, mean, std), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        posterior.pairwise(z[:5], mean, std).sum(-1).logsumexp(-1) - math.log(100), naive(z[:5], mean, std), atol=1e-4
    )


def test_one_latent_at_a_time():
    """What total correlation and dimension-wise KL are made of: k = 1, z at the edge of float32's exponents."""
    mean, std = torch.linspace(-3, 3, 101).unsqueeze(1), torch.full((101, 1), 0.02)
    z = torch.tensor([[-3.0], [0.01], [9.0], [-40.0], [1e4]])
    found = posterior.log_density(z, mean, std)
    np.testing.assert_allclose(found, naive(z, mean, std), rtol=1e-9, atol=1e-3)


@pytest.mark.parametrize("block", [1, 7, 1000, 5000])
@pytest.mark.parametrize("width", [0.5, 0.001])  # computed in float32 and in float64
def test_blocks_change_nothing(block, width, monkeypatch):
    """Sizes that are no multiples of the block, of one block and more, a block that holds nothing but the own component."""
    n, m = 61, 1100
    z, mean, std = reference(n, 4, width=width)
    own = torch.arange(m) % n
    z = z.repeat(m // n + 1, 1)[:m] + 1e-4 * torch.randn(m, 4, dtype=torch.float64)
    monkeypatch.setattr(mixture, "_BLOCK", block)
    with_own, without = posterior.leave_one_out(z, mean, std, own)
    np.testing.assert_allclose(posterior.log_density(z, mean, std), naive(z, mean, std), atol=1e-4)
    np.testing.assert_allclose(with_own, naive(z, mean, std), atol=1e-4)
    np.testing.assert_allclose(without, naive(z, mean, std, own), atol=1e-4)


class Memory(TorchDispatchMode):
    """Bytes of the tensors that live at once while it is on, those that were there before left out."""

    def __init__(self):
        super().__init__()
        self.held, self.live, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.keep(tensor)
        return result

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if self.held.get(key, 0) == 0:
            self.live += size
            self.peak = max(self.peak, self.live)
        self.held[key] = self.held.get(key, 0) + 1
        weakref.finalize(tensor, self.drop, key, size)

    def drop(self, key, size):
        self.held[key] -= 1
        if self.held[key] == 0:
            self.live -= size


def test_memory_does_not_grow_with_the_pairs():
    z, mean, std = torch.randn(2000, 4), torch.randn(20_000, 4), torch.full((20_000, 4), 0.3)
    with Memory() as memory:
        torch.exp(z[:50] @ mean.T)
    assert memory.peak >= 2 * 50 * 20_000 * 4  # the counter sees both of these, and that they live at once
    for width in (0.3, 0.001):  # float32 and float64
        with Memory() as memory:
            posterior.log_density(z, mean, std.fill_(width))
        assert memory.peak < 2000 * 20_000 * 4 / 10  # 160 MB for all pairs


def test_measuring_takes_no_gradients():
    z, mean, std = (part.requires_grad_() for part in reference(20))
    assert not posterior.log_density(z, mean, std).requires_grad
    assert not posterior.leave_one_out(z, mean, std, torch.arange(20))[1].requires_grad


# ---------------------------------------------------------------- minibatch weights


@pytest.mark.parametrize(("n", "batch"), [(2, 1), (2, 2), (6, 3), (50, 50), (1000, 64)])
def test_sums_of_the_weights(n, batch):
    like = torch.zeros((), dtype=torch.float64)
    for name, total in (("weighted", 1 / n), ("stratified", 1.0), ("hfvae", 1.0)):
        weights = posterior.log_weights(name, batch, n, like).exp()
        assert weights.shape == (batch, batch)
        assert (weights >= 0).all()
        if batch > 1:
            np.testing.assert_allclose(weights.sum(1), total, rtol=1e-12)
        if name != "weighted":
            np.testing.assert_allclose(weights.diagonal(), 1 / n, rtol=1e-12)  # each row's own: not a column of them
    assert posterior.log_weights("hfvae", batch, n, torch.zeros(())).dtype == torch.float32


@pytest.mark.parametrize("estimator", ["stratified", "hfvae"])
@pytest.mark.parametrize(("n", "batch"), [(6, 3), (5, 2), (5, 4), (4, 4)])
def test_average_over_all_batches_is_the_density(n, batch, estimator):
    """x_j in row r, the other rows filled in every order with every choice from the N − 1 others: the mean is q(z_j)."""
    z, mean, std = reference(n, 2, width=0.5)
    pairs = posterior.pairwise(z, mean, std)
    weights = posterior.log_weights(estimator, batch, n, z)
    exact = naive(z, mean, std)
    exact_latents = np.stack([naive(z[:, [d]], mean[:, [d]], std[:, [d]]) for d in range(2)], 1)
    for row, j in itertools.product(range(batch), range(n)):
        rest = [i for i in range(n) if i != j]
        batches = [(*order[:row], j, *order[row:]) for order in itertools.permutations(rest, batch - 1)]
        found = [posterior.mix(pairs[list(each)][:, list(each)], weights, [[0, 1]]) for each in batches]
        for name, truth in (("joint", exact[j]), ("groups", exact[j]), ("latents", exact_latents[j])):
            mean_density = torch.stack([getattr(each, name)[row].exp() for each in found]).mean(0)
            np.testing.assert_allclose(mean_density, np.broadcast_to(np.exp(truth), mean_density.shape), rtol=1e-10)


def test_weighted_sampling_is_off_by_log_b_apart_and_by_log_n_together():
    """By hand. Apart: q̂ = q_own/NB against q_own/N. Together: q̂ = B·q/NB against q."""
    n, b = 40, 8
    like = torch.zeros((), dtype=torch.float64)
    weights = posterior.log_weights("weighted", b, n, like)
    for spread, shift in ((100.0, math.log(b)), (0.0, math.log(n))):
        mean = spread * torch.arange(n, dtype=torch.float64).unsqueeze(1).expand(n, 2)
        std = torch.full((n, 2), 0.7, dtype=torch.float64)
        z = mean + std * torch.randn(n, 2, dtype=torch.float64)
        found = posterior.mix(posterior.pairwise(z[:b], mean[:b], std[:b]), weights).joint
        np.testing.assert_allclose(found, naive(z[:b], mean, std) - shift, atol=1e-10)


def test_a_batch_of_one_has_its_own_weight_and_a_batch_of_all_is_exact():
    """Of all with weights that are equal, that is: the stratified ones are not, they are right on average over the orders."""
    n = 12
    z, mean, std = reference(n, 3)
    own = np.array([naive_components(z[j].tolist(), mean[[j]].tolist(), std[[j]].tolist())[0] for j in range(n)])
    for name in posterior.MINIBATCH:
        alone = posterior.mix(posterior.pairwise(z[:1], mean[:1], std[:1]), posterior.log_weights(name, 1, n, z)).joint
        assert alone.item() == pytest.approx(own[0] - math.log(n), abs=1e-10)
    for name, shift in (("weighted", math.log(n)), ("hfvae", 0.0)):
        joint = posterior.mix(posterior.pairwise(z, mean, std), posterior.log_weights(name, n, n, z)).joint
        np.testing.assert_allclose(joint, naive(z, mean, std) - shift, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posterior.log_weights("weighted", 5, 4, torch.zeros(())), "batch of 5 .* reference of 4"),
        (lambda: posterior.log_weights("hfvae", 0, 4, torch.zeros(())), "batch of 0"),
        (lambda: posterior.log_weights("exact", 2, 4, torch.zeros(())), "estimator must be one of weighted"),
        (lambda: posterior.log_weights([], 2, 4, torch.zeros(())), "estimator must be one of"),
        (lambda: posterior.leave_one_out(*reference(1), torch.tensor([0])), "at least two"),
        (lambda: posterior.check_reference(torch.zeros(1, 3)), "at least two"),
    ],
)
def test_bad_arguments_in_one_line(call, message):
    one_line(call, match=message)


# ---------------------------------------------------------------- sums of pairs


def test_pairs_are_the_densities_of_every_z_under_every_component():
    z, mean, std = reference(5, 3)
    pairs = posterior.pairwise(z[:4], mean, std)
    assert pairs.shape == (4, 5, 3)
    for j, i, d in itertools.product(range(4), range(5), range(3)):
        exact = -0.5 * ((z[j, d] - mean[i, d]) / std[i, d]) ** 2 - math.log(std[i, d]) - 0.5 * math.log(2 * math.pi)
        assert pairs[j, i, d].item() == pytest.approx(exact.item(), abs=1e-12)


def test_weights_enter_once_however_many_latents():
    """log Σ_i w_i Π_d q(z_d|x_i): a weight inside the sum over d would count k times."""
    z, mean, std = reference(6, 4)
    w = torch.rand(6, 6, dtype=torch.float64)
    groups = [[2, 0], [3], [1]]
    found = posterior.mix(posterior.pairwise(z, mean, std), w.log(), groups)
    columns = [(mean[:, [d]].tolist(), std[:, [d]].tolist()) for d in range(4)]
    density = np.exp([[naive_components([one[d]], *columns[d]) for d in range(4)] for one in z.tolist()])
    for j in range(6):  # density: (z, latent, component)
        assert found.joint[j].item() == pytest.approx(math.log((w[j].numpy() * density[j].prod(0)).sum()), abs=1e-10)
        for g, group in enumerate(groups):
            exact = math.log((w[j].numpy() * density[j][group].prod(0)).sum())
            assert found.groups[j, g].item() == pytest.approx(exact, abs=1e-10)
        for d in range(4):
            assert found.latents[j, d].item() == pytest.approx(math.log((w[j].numpy() * density[j][d]).sum()), abs=1e-10)
    assert posterior.mix(posterior.pairwise(z, mean, std), w.log()).groups.shape == (6, 0)


def test_leading_model_dimensions_are_models_side_by_side():
    sets = [list(reference(7, 3)) for _ in range(2)]
    z, mean, std = (torch.stack(parts) for parts in zip(*sets, strict=True))
    for weights in (posterior.log_weights("stratified", 7, 30, z), torch.full((7,), -math.log(7), dtype=z.dtype)):
        found = posterior.mix(posterior.pairwise(z, mean, std), weights, [[0, 2], [1]])
        assert [part.shape for part in found] == [(2, 7), (2, 7, 2), (2, 7, 3)]
        for m, one in enumerate(sets):
            alone = posterior.mix(posterior.pairwise(*one), weights, [[0, 2], [1]])
            for a, b in zip(found, alone, strict=True):
                np.testing.assert_allclose(a[m], b, rtol=1e-12)
    np.testing.assert_allclose(found.joint[1], naive(*sets[1]), atol=1e-10)


def test_gradients_of_the_density():
    """∂ log q(z)/∂μ_i = r_i (z − μ_i)/σ_i², r_i the responsibility of component i; and in z, minus their sum."""
    z, mean, std = (part.requires_grad_() for part in reference(5, 2))
    weights = torch.full((5,), -math.log(5), dtype=torch.float64)
    found = posterior.mix(posterior.pairwise(z[:1], mean, std), weights).joint
    by_z, by_mean, by_std = torch.autograd.grad(found.sum(), (z, mean, std))
    logs = naive_components(z[0].tolist(), mean.tolist(), std.tolist())
    share = np.exp(logs - log_sum(logs))[:, None]
    scaled = ((z[:1] - mean) / std**2).detach().numpy()
    np.testing.assert_allclose(by_mean, share * scaled, atol=1e-10)
    np.testing.assert_allclose(by_z[0], -(share * scaled).sum(0), atol=1e-10)
    width = std.detach().numpy()
    np.testing.assert_allclose(by_std, share * (scaled**2 * width - 1 / width), atol=1e-10)


def plain_terms(z, mean, std, log_weight):
    """The weighted terms from torch's own densities and logsumexp, pair by pair."""
    pairs = distributions.Normal(mean.unsqueeze(-3), std.unsqueeze(-3), validate_args=False).log_prob(z.unsqueeze(-2))
    joint = (pairs.sum(-1) + log_weight).logsumexp(-1)
    return 6 * (joint - (pairs + log_weight.unsqueeze(-1)).logsumexp(-2).sum(-1)).mean() + joint.mean()


def own_terms(z, mean, std, log_weight):
    found = posterior.log_densities(z, mean, std, log_weight)
    return 6 * (found.joint - found.latents.sum(-1)).mean() + found.joint.mean()


@pytest.mark.parametrize("centre", [0.0, 30.0])
@pytest.mark.parametrize("width", [1.0, 0.1, 0.003, 0.001, 1e-4, 1e-5])
def test_gradients_in_single_precision_are_those_in_double_however_narrow_the_posteriors(width, centre):
    """On the same float32 z, means and standard deviations: what is lost is lost in the computation."""
    mean = centre + torch.randn(128, 8)
    std = width * (0.3 * torch.randn(128, 8)).exp()
    weights = posterior.log_weights("weighted", 128, 1200, torch.zeros((), dtype=torch.float64))
    inputs = [mean + std * torch.randn(128, 8), mean, std]
    exact = torch.func.grad(plain_terms, (0, 1, 2))(*(part.double() for part in inputs), weights)
    leaves = [part.clone().requires_grad_() for part in inputs]
    found = torch.autograd.grad(own_terms(*leaves, weights.float()), leaves)
    for name, one, other in zip(("z", "mean", "std"), found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 1e-5 * other.norm(), name
        assert (one - other).abs().max() <= 1e-4 * other.abs().max(), name


@pytest.mark.parametrize("width", [1.0, 0.1, 0.003, 0.001])
def test_gradients_through_the_draw_are_those_in_double_until_z_itself_is_rounded(width):
    """z = μ + σε in float32 is off by 6 · 10⁻⁸ |μ|, so that d log q(z)/dμ is by that over σ: below 10⁻⁴ until σ = 10⁻³."""
    mean, log_std, noise = torch.randn(128, 8), math.log(width) + 0.3 * torch.randn(128, 8), torch.randn(128, 8)
    weights = posterior.log_weights("weighted", 128, 1200, torch.zeros((), dtype=torch.float64))

    def gradients(terms, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in (mean.clone(), log_std.clone())]
        std = leaves[1].exp()
        return torch.autograd.grad(terms(leaves[0] + std * noise.to(dtype), leaves[0], std, weights.to(dtype)), leaves)

    for one, other in zip(gradients(own_terms, torch.float32), gradients(plain_terms, torch.float64), strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_pairs_with_leading_models_are_torchs_densities():
    """Also where one of the three is shared by the models."""
    z, mean, std = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.rand(2, 3, 7, 4) + 0.1
    for shapes in ((z, mean, std), (z, mean[0, 0], std[0, 0]), (z[0, 0], mean, std), (z[0], mean[0], std[0])):
        leaves = [part.double().requires_grad_() for part in shapes]
        expected = distributions.Normal(leaves[1].unsqueeze(-3), leaves[2].unsqueeze(-3)).log_prob(leaves[0].unsqueeze(-2))
        found = posterior.pairwise(*leaves)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        slope = torch.randn_like(expected)
        pairs = zip(torch.autograd.grad(found, leaves, slope), torch.autograd.grad(expected, leaves, slope), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weight", ["a number", "of a pair"])
def test_terms_and_gradients_under_vmap_are_those_of_each_model(weight):
    """Also as many models as latents, whose places a weight could be taken for."""
    for m in (3, 2):
        z, mean, std = torch.randn(m, 6, 2), torch.randn(m, 6, 2), torch.rand(m, 6, 2) + 0.1
        z, mean, std = (part.double() for part in (z, mean, std))
        of_pairs = weight == "of a pair"
        weights = posterior.log_weights("stratified", 6, 30, z) if of_pairs else torch.tensor(-math.log(6)).double()
        slopes = torch.func.vmap(torch.func.grad(own_terms, (0, 1, 2)), (0, 0, 0, None))(z, mean, std, weights)
        values = torch.func.vmap(own_terms, (0, 0, 0, None))(z, mean, std, weights)
        shared = torch.func.vmap(own_terms, (0, None, None, None))(z, mean[0], std[0], weights)  # the components of one
        each = weights if of_pairs else weights.expand(6, 6)
        for one in range(m):
            torch.testing.assert_close(values[one], plain_terms(z[one], mean[one], std[one], each))
            torch.testing.assert_close(shared[one], plain_terms(z[one], mean[0], std[0], each))
            exact = torch.func.grad(plain_terms, (0, 1, 2))(z[one], mean[one], std[one], each)
            torch.testing.assert_close([slope[one] for slope in slopes], list(exact))
        moved = (part.movedim(0, 2) for part in (z, mean, std))
        torch.testing.assert_close(torch.func.vmap(own_terms, (2, 2, 2, None))(*moved, weights), values)


def test_joint_density_alone_under_vmap_is_that_of_each_model():
    z, mean, std = torch.randn(3, 6, 2), torch.randn(3, 7, 2), torch.rand(3, 7, 2) + 0.1

    def joint(z, mean, std):
        return posterior.log_densities(z, mean, std, -math.log(7), latents=False).joint

    found = torch.func.vmap(joint)(z, mean, std)
    torch.testing.assert_close(found, torch.stack([joint(z[m], mean[m], std[m]) for m in range(3)]))


# Tiles of one pair, of some rows, of all rows and some latents, of all latents and some models, and of everything.
@pytest.mark.parametrize("tile", [1, 15, 80, 300, 1 << 17])
@pytest.mark.parametrize("weight", ["a number", "of a component", "of a pair"])
@pytest.mark.parametrize("groups", [[], [[2, 0], [1, 3]], [[3]]])
def test_log_densities_are_mix_of_pairwise_with_its_gradients(tile, weight, groups, monkeypatch):
    """Whatever the tiles are; with and without the latents alone; also where something is shared by the models."""
    monkeypatch.setattr(_fused, "_TILE", tile)
    z, mean, std = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.rand(2, 3, 7, 4) + 0.1
    shape = {"a number": (), "of a component": (7,), "of a pair": (5, 7)}[weight]
    log_weight = torch.randn(shape, dtype=torch.float64) - 2.0
    for shapes in ((z, mean, std), (z, mean[0, 0], std[0, 0]), (z[0, 0], mean, std), (z[0, 0], mean[0, 0], std[0, 0])):
        leaves = [part.double().requires_grad_() for part in shapes]
        expected = posterior.mix(posterior.pairwise(*leaves), log_weight.expand(5, 7), groups)
        slopes = [torch.randn_like(each) for each in expected]
        for latents in (True, False):
            found = posterior.log_densities(*leaves, log_weight if shape else log_weight.item(), groups, latents)
            assert found.groups.shape == expected.groups.shape
            assert found.latents.shape == (expected.latents if latents else expected.latents[..., :0]).shape
            kept = [i for i in range(3) if found[i].numel()]
            for i in kept:
                torch.testing.assert_close(found[i], expected[i], rtol=1e-12, atol=1e-12)
            # Of all results together, and of each alone: nothing comes back from the others.
            for some in (kept, *([i] for i in kept)):
                one, other = (
                    torch.autograd.grad([each[i] for i in some], leaves, [slopes[i] for i in some], retain_graph=True)
                    for each in (found, expected)
                )
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_tiles_do_not_change_what_one_of_several_models_gets(monkeypatch):
    """Bit for bit, in single precision: what is summed over in one go does not depend on the number of models."""
    monkeypatch.setattr(_fused, "_TILE", 600)
    z, mean, std = torch.randn(3, 9, 4), torch.randn(3, 14, 4), torch.rand(3, 14, 4) + 0.1
    together = posterior.log_densities(z, mean, std, -1.0, [[0, 1]])
    for m in range(3):
        alone = posterior.log_densities(z[m], mean[m], std[m], -1.0, [[0, 1]])
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one[m], other)


def test_pairs_and_densities_have_first_and_second_derivatives():
    leaves = [part.requires_grad_() for part in reference(4, 2)]
    assert torch.autograd.gradcheck(posterior.pairwise, leaves)
    assert torch.autograd.gradgradcheck(posterior.pairwise, leaves)
    weights = posterior.log_weights("hfvae", 4, 9, leaves[0])
    for groups, latents in (([], True), ([[1]], True), ([[1], [0]], False)):
        found = lambda *x: tuple(  # noqa: E731
            each
            for each in posterior.log_densities(*x, weights, groups, latents)  # noqa: B023
            if each.numel()
        )
        assert torch.autograd.gradcheck(found, leaves)
        assert torch.autograd.gradgradcheck(found, leaves)


def test_components_that_are_cut_off_have_no_share_and_no_slope():
    """However far they are: e⁻⁵⁰ of the largest, times a distance of 10⁸ deviations and its square, would be no rounding."""
    mean = torch.tensor([[0.0], [1e4]], requires_grad=True)
    std = torch.tensor([[1.0], [1e-4]], requires_grad=True)
    found = posterior.log_densities(torch.zeros(1, 1), mean, std, -math.log(2))
    by_mean, by_std = torch.autograd.grad(found.joint.sum() + found.latents.sum(), (mean, std))
    assert by_mean[1].item() == by_std[1].item() == 0.0
    assert found.joint.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(2))


def test_far_components_leave_no_denormals_behind():
    """Their exponentials would be many times slower, and so would be all products with them."""
    mean = torch.linspace(0, 100, 500).unsqueeze(1).requires_grad_()
    posterior.log_densities(torch.zeros(3, 1), mean, torch.full((500, 1), 0.5), -math.log(500)).joint.sum().backward()
    assert mean.grad is not None
    assert not ((mean.grad.abs() < torch.finfo(torch.float32).tiny) & (mean.grad != 0)).any()


# ---------------------------------------------------------------- groups, posteriors


def test_groups_are_kept_in_their_order():
    assert posterior.partition([[2, 0], (1,)], 3) == ((2, 0), (1,))
    assert posterior.partition(np.array([[0, 1], [3, 2]])) == ((0, 1), (3, 2))


@pytest.mark.parametrize(
    "groups",
    [
        [[0, 1]],
        [[0, 1], [1, 2]],
        [[0, 1, 1, 2]],
        [[-1, 0, 1]],
        [[0, 1], [3]],
        [[0, 1, 2], []],
        [],
        [0, 1, 2],
        3,
        None,
        "012",
        [[0.0, 1, 2]],
    ],
)
def test_groups_that_are_no_partition(groups):
    one_line(
        lambda: posterior.partition(groups, 3), "groups must be lists with each of the latents 0 to 2 in exactly one of them"
    )


def test_groups_without_a_size_must_still_be_a_partition():
    for groups in ([[0], [2]], [[0, 0]], [[]], []):
        with pytest.raises(ValueError, match="groups must be lists"):
            posterior.partition(groups)


@pytest.mark.parametrize(
    "other",
    [
        distributions.Normal(torch.zeros(4, 2), 1.0),
        distributions.Independent(distributions.Laplace(torch.zeros(4, 2), 1.0), 1),
        distributions.Independent(distributions.Normal(torch.zeros(4, 2), 1.0), 2),
        distributions.MultivariateNormal(torch.zeros(4, 2), torch.eye(2)),
    ],
)
def test_other_posteriors_are_refused(other):
    one_line(lambda: posterior.mean_and_std(other), "diagonal Gaussian")


def test_codes_are_encoded_in_parts(monkeypatch):
    model = models.VAE((2, 3), 2, likelihood="bernoulli").double()
    x = torch.rand(11, 2, 3)
    expected = model.posterior(x.double())
    for chunk in (1 << 24, 4 * 6, 1):
        monkeypatch.setattr(_tensors, "AT_ONCE", chunk)
        mean, std = posterior.encode(model, x)
        np.testing.assert_allclose(mean, expected.mean.detach(), atol=1e-14)
        np.testing.assert_allclose(std, expected.variance.sqrt().detach(), atol=1e-14)
    assert not mean.requires_grad


# ---------------------------------------------------------------- maximum mean discrepancy


def test_mixtures_have_second_derivatives():
    """Hessians and gradient penalties go through the log of the mixture: against torch's own logsumexp."""
    mean, std, z = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64) + 0.2, torch.randn(4, 2)
    weight = posterior.log_weights("hfvae", 5, 9, mean)[:4]

    def own(mean):
        found = posterior.mix(posterior.pairwise(z.double(), mean, std), weight, [[0, 1]])
        return (found.joint.sum() + found.latents.square().sum() + found.groups.sum()) / 3

    def torchs(mean):
        pairs = posterior.pairwise(z.double(), mean, std)
        joint = (pairs.sum(-1) + weight).logsumexp(-1)
        return (2 * joint.sum() + (pairs + weight[..., None]).logsumexp(-2).square().sum()) / 3

    mean.requires_grad_()
    for function in (own, torchs):
        (gradient,) = torch.autograd.grad(function(mean), mean, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), mean)
        if function is own:
            expected = gradient.detach(), second
    torch.testing.assert_close(expected, (gradient.detach(), second))


def test_exact_mmd_is_the_integral_of_the_kernel():
    """In one dimension by Gauss–Hermite quadrature over both points of each pair; in three against a U-statistic."""
    mean = torch.tensor([[0.4], [-1.0], [2.0]], dtype=torch.float64)
    std = torch.tensor([[0.5], [0.2], [1.5]], dtype=torch.float64)
    nodes, weights = (torch.as_tensor(each) for each in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()

    def points(m, s):
        return (m + s * nodes).flatten(), (weights.expand(len(m), -1) / len(m)).flatten()

    def expected(a, b):
        return (a[1].unsqueeze(1) * b[1] * torch.exp(-((a[0].unsqueeze(1) - b[0]) ** 2))).sum().item()

    q, p = points(mean, std), points(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    assert posterior.mmd(mean, std) == pytest.approx(expected(q, q) + expected(p, p) - 2 * expected(q, p), abs=1e-10)

    torch.manual_seed(0)
    mean, std = 0.8 * torch.randn(40, 3).double() + 0.3, torch.rand(40, 3).double() + 0.2
    values = []
    for _ in range(100):
        rows = torch.randint(40, (400,))
        a, b = torch.normal(mean[rows], std[rows]), torch.randn(400, 3).double()
        same = [torch.exp(-torch.cdist(x, x).square() / 9) for x in (a, b)]
        values.append(
            sum((kernel.sum() - 400) / (400 * 399) for kernel in same) - 2 * torch.exp(-(torch.cdist(a, b) ** 2) / 9).mean()
        )
    values = torch.stack(values)
    assert abs(values.mean() - posterior.mmd(mean, std)) < 3 * values.std() / 10


def test_exact_mmd_is_zero_for_the_prior_itself(monkeypatch):
    zero, one = torch.zeros(5, 4), torch.ones(5, 4)
    assert posterior.mmd(zero, one) == pytest.approx(0, abs=1e-12)
    value = posterior.mmd(zero + 0.3 * torch.arange(5).unsqueeze(1), one)
    assert value > 1e-3
    monkeypatch.setattr(_mmd, "_BLOCK", 1)
    assert posterior.mmd(zero + 0.3 * torch.arange(5).unsqueeze(1), one) == pytest.approx(value, rel=1e-12)
