"""Embedded streams: what is decoded is what was chosen, what is chosen has the law of the posterior, any prefix decodes."""

import math

import numpy as np
import pytest
import torch
from errors import one_line
from scipy import stats

from nbvae import analytic, coding, data, models, objectives, posterior, samplers, training
from nbvae.coding import embedded as module

ORACLE = analytic.LinearGaussian([5.0, 3.0, 1.5, 0.8, 0.2], 2)
SIGMA2, LADDER = 0.3, (4.0, 1.0)


def view(beta):
    best = ORACLE.solve(beta, SIGMA2)
    return models.VAE.from_linear(
        encoder=best.encoder, variance=best.posterior_variance, decoder=best.decoder, sigma=SIGMA2**0.5
    )


def chain_of(coupling, n_components=1, n=4000):
    scale = torch.tensor([5.0, 3.0, 1.5, 0.8, 0.2], dtype=torch.float64).sqrt()
    x = scale * torch.randn(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return samplers.Chain([view(beta) for beta in LADDER], x, n_components=n_components, coupling=coupling), x


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def ladder(digits):
    with training.seeded(0):
        many = models.MultiBetaVAE(digits.shape, 4, hidden=(32,), beta_range=(0.1, 4.0))
    config = training.TrainConfig(15, 64, 4e-3, "one_cycle", device="cpu")
    training.fit(many, digits, objectives.MultiBeta(0.25), config)
    return samplers.Chain(many, digits.train, betas=[2.0, 0.5, 0.15], n_components=3, coupling="channel")


@pytest.fixture(scope="module")
def embedded(ladder):
    return coding.Embedded(ladder, bits=13)


@pytest.fixture(scope="module")
def found(embedded, digits):
    return embedded.encode(digits.test[:80])


# What the sender chooses.


@pytest.mark.parametrize("coupling", posterior.KINDS)
def test_the_codes_that_are_chosen_have_the_law_of_the_posteriors_drawn_together(coupling):
    """One image very often: each code has its own posterior's law, and both together the coupling's covariance."""
    chain, x = chain_of(coupling)
    n = 1500
    made = coding.Embedded(chain, bits=14, spare=100).encode(x[:1].expand(n, -1).float())
    assert {rung.group for rung in made.rungs} <= {1, 2, 3}
    with torch.no_grad():
        laws = [each.posterior(x[:1]) for each in chain.views]
    white = [((z - law.mean) / law.stddev).numpy() for z, law in zip(made.codes, laws, strict=True)]
    for each in white:
        for i in range(2):
            assert stats.kstest(each[:, i], "norm").pvalue > 1e-3
        np.testing.assert_allclose(np.cov(each.T), np.eye(2), atol=4.5 * math.sqrt(2 / n))
    with training.seeded(1):
        fine = torch.normal(laws[1].mean.expand(200_000, 1, 2), laws[1].stddev.expand(200_000, 1, 2))
        codes = [(law.mean, law.stddev) for law in laws]
        coarse = chain.couplings[0].sample(*codes, fine)
    both = torch.cat([(coarse[:, 0] - laws[0].mean) / laws[0].stddev, (fine[:, 0] - laws[1].mean) / laws[1].stddev], 1)
    np.testing.assert_allclose(np.cov(np.hstack(white).T), np.cov(both.T), atol=4.5 * math.sqrt(2 / n))


def test_the_nats_are_those_of_the_chain(digits, found, ladder):
    """`Chain.rates` has the first in closed form, and draws the others from fine to coarse."""
    rates = ladder.rates(digits.test[:80], draws=50)
    nats = np.array([rung.nats for rung in found.rungs]) / 80
    np.testing.assert_allclose(nats, rates, rtol=0.05, atol=0.05)
    assert nats[0] == pytest.approx(rates[0].item(), rel=0.02)


def test_a_block_costs_little_more_than_its_information(found):
    """log₂(KL + 1) + 4 bits, and the last byte."""
    for rung in found.rungs:
        bits = rung.nats / math.log(2) / rung.blocks
        assert 0 < rung.overhead < math.log2(bits + 1) + 4 + 8 / rung.blocks
        assert rung.candidates <= rung.blocks * 2 ** (13 + 1) + 1024


def test_a_rung_that_says_nothing_costs_nothing(digits):
    with training.seeded(0):
        model = models.VAE(digits.shape, 2, hidden=(4,))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    chain = samplers.Chain([model, model], digits.train, n_components=1)
    first, second = coding.Embedded(chain).encode(digits.test[:200]).rungs
    assert first.nats == pytest.approx(0, abs=1e-9)
    assert first.size <= 4  # the number 0 for each of four blocks
    assert second.size <= 16


def test_codes_too_far_from_the_prior_for_any_list_are_short_and_decode():
    """Images a thousand times as large as the data, whose codes would need more draws than there are numbers."""
    chain, x = chain_of("channel")
    embedded = coding.Embedded(chain, bits=8)
    made = embedded.encode(1000 * x[:3].float())
    assert made.rungs[0].nats > 3 * 1000
    assert made.rungs[0].short == made.rungs[0].blocks == 3
    assert all(torch.equal(mine, sent) for mine, sent in zip(embedded.codes(made.data), made.codes, strict=True))


def test_the_density_of_a_proposal_is_that_of_torchs_mixture(ladder, embedded, digits):
    z = ladder.encode(digits.test[:6])[0].double()
    law = ladder.given(0, z)
    proposal = embedded._proposal(1, [z], 6)
    new = z + 0.3 * torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    for row in range(6):
        mine = proposal.log_prob(row, new[:, row].numpy()) - 2 * math.log(2 * math.pi)
        np.testing.assert_allclose(mine, law.log_prob(new)[:, row], rtol=1e-4)
    torch.testing.assert_close(law.log_prob(new[0]), ladder.steps[0].log_prob(new[0], z))
    one_line(lambda: ladder.given(2, z), "2 steps")


def test_numbers_come_back_whatever_they_are():
    generator = np.random.default_rng(0)
    for top in (0, 1, 5, 12, 24):
        for blocks in (1, 7, 300):
            numbers = np.array([int(generator.integers(2 ** generator.integers(top + 1))) for _ in range(blocks)])
            content, size = module._packed(numbers)
            assert module._unpacked(content, blocks, *size) == numbers.tolist()


# What the receiver finds.


def test_every_prefix_decodes_to_the_codes_that_were_chosen_and_to_finer_images(embedded, found, digits):
    errors = []
    for rungs in (1, 2, 3):
        prefix = found.prefix(rungs)
        assert found.data.startswith(prefix)
        for more in (b"", found.data[len(prefix) : len(prefix) + 5]):  # cut within the next rung
            codes = embedded.codes(prefix + more)
            assert len(codes) == rungs
            assert all(torch.equal(mine, sent) for mine, sent in zip(codes, found.codes, strict=False))
        images = embedded.decode(prefix)
        assert torch.equal(images, embedded.images(found.codes[rungs - 1], rungs - 1))
        errors.append((images - digits.test[:80]).square().sum().item())
    assert errors == sorted(errors, reverse=True)
    assert found.prefix(3) == found.data
    assert found.header + sum(rung.size for rung in found.rungs) == len(found.data)


def test_the_same_images_are_the_same_stream_and_another_seed_makes_another(ladder, digits):
    made = [coding.Embedded(ladder, bits=10, seed=seed).encode(digits.test[:10]).data for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    one_line(lambda: coding.Embedded(ladder, seed=1).decode(made[0]), "another seed")


def test_what_is_no_stream_of_this_ladder_is_refused(embedded, found, digits):
    with training.seeded(0):
        many = models.MultiBetaVAE(digits.shape, 4, hidden=(32,), beta_range=(0.1, 4.0))
    other = samplers.Chain(many, digits.train, betas=[2.0, 0.5, 0.15], n_components=3, coupling="channel")
    one_line(lambda: coding.Embedded(other).decode(found.data), "another ladder")
    for wrong in (b"", b"PK", None, b"NBVE", b"NBVE\x07" + b"0" * 99, found.data[:20], found.data + b"0", "text"):
        one_line(lambda wrong=wrong: embedded.decode(wrong))
    one_line(lambda: embedded.decode(found.data[: found.header + 3]), "first rung")
    one_line(lambda: embedded.encode(digits.test[:3, :, :4]), "images must have the shape")
    one_line(lambda: embedded.encode(digits.test[:3] * torch.nan), "finite")
    one_line(lambda: coding.Embedded(many), "samplers.Chain")
    one_line(lambda: coding.Embedded(other, bits=40), "bits must be")


def test_a_damaged_stream_is_refused_or_decoded_to_codes_that_were_sent(embedded, found):
    generator, refused = np.random.default_rng(0), []
    for _ in range(150):
        wrong = bytearray(found.data)
        at, n = int(generator.integers(len(wrong))), int(generator.integers(1, 5))
        kind = generator.integers(4)
        if kind == 0:
            wrong[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del wrong[at : at + n]
        elif kind == 2:
            wrong[at:at] = generator.bytes(n)
        else:
            del wrong[at:]
        try:
            codes = embedded.codes(bytes(wrong))
        except ValueError as error:
            refused.append(str(error))
            continue
        assert all(torch.equal(mine, sent) for mine, sent in zip(codes, found.codes, strict=False))
    assert len(refused) > 50
    assert all(len(said.splitlines()) == 1 for said in refused)
