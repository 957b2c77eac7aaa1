"""A ladder of codes: what they cost if each is sent given the one before, against the last code alone.

A ladder is a list of models of falling β. The code of the largest β is sent under the prior, each next one under a density of
it given the one before, a mixture of Gaussians fitted to pairs of codes of training images. Any number of them decodes to an
image: the code is *embedded*. What the whole ladder costs more than its last code alone, priced by a mixture of as many
Gaussians, is its overhead.

Two things are varied. How the codes of an image are drawn: independently, or each as a noisy copy of the finer one, by channel
or by matrix (`posterior.Coupling`); each alone has its own posterior's law in any case. And where the models come from: views
of one model of many β, by three ways of telling it β, trained as usual or on codes that are drawn together; β-VAEs trained
separately; β-VAEs that are trained on from one another, in either direction, for as long as the first or briefly at a low
learning rate; and the β-VAE of the smallest β alone, with noise on its codes for the others and a decoder for each.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks, data, estimators, metrics, models, objectives, posterior, results, samplers, training
from nbvae.results import Estimate
from studies import convergence, pairs
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.plan import Plan as Common
from studies.plan import accept_ladder, load
from studies.record import Record
from studies.responses import FreeVariance, straight

QUESTION = "What does a ladder of codes cost, each sent given the one before, against the last code alone?"
CHAPTER = "07_alignment"
DATASETS = ("digits", "mnist", "glyphs")
MANY = {"one model, FiLM": "film", "one model, gates": "gates", "one model, concatenation": "concatenation"}
FILM, APART = "one model, FiLM", "trained separately"
DOWN, UP, BRIEF = "continued to smaller β", "continued to larger β", "continued to larger β, briefly"
UNTRAINED = ", untrained"
TWICE = ", twice the passes"  # behind the names of quantities
COPIES = "noisy copies of one code"
ON_COPIES = {f"{kind}, trained on copies": kind for kind in MANY}  # pairs of codes that are drawn together
KINDS = (*MANY, APART, DOWN, UP, BRIEF, COPIES, *ON_COPIES)
COUPLINGS = posterior.KINDS
PRIOR, ALONE, STEP = "last code, prior", "last code", "one step"


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `ladder`: βs from coarse to fine.
    - `kinds`: where the models come from, among `KINDS`; "one model, FiLM" must be one of them.
    - `lowest`, `highest`: the range of β that one model is trained for; `power`: of β in the weights of its loss.
    - `passes`: over the training images, of each training but the brief ones; `brief`: of these; `brief_lr`: their learning
      rate. All are also trained for twice as many passes.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `components`: numbers of Gaussians in the mixtures; the last is the one that claims are about.
    - `draws`: pairs of codes for each training image, which the densities are fitted to; `measured`: for each test image.
    - `largest_error`: the most that the standard error of an overhead may be, a share, unless it is at most a quarter of it.
    - `unclaimed`: kinds, with or without a way to draw, that are not claimed to be on one side of one model with FiLM.
    """

    ladder: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
    kinds: tuple[str, ...] = KINDS
    lowest: float = 0.03
    highest: float = 4.0
    power: float = 0.25
    passes: int = 60
    brief: int = 10
    brief_lr: float = 1e-3
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 100
    lr: float = 4e-3
    components: tuple[int, ...] = (1, 10)
    draws: int = 10
    measured: int = 20
    largest_error: float = 0.02
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        accept_ladder(self.ladder, self.lowest, self.highest)
        for name in self.kinds:
            checks.choice("a kind", name, KINDS)
        if FILM not in self.kinds or len(self.kinds) < 2:
            raise ValueError(f"kinds must have {FILM!r}, which the others are compared with, and at least one other")
        if not self.components:
            raise ValueError("components must be at least one number of Gaussians")
        convergence.accept_unclaimed(self.unclaimed, KINDS)
        if len(self.seeds) < 2:
            raise ValueError("errors need at least two seeds")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset == "digits":
        # Decoders of noisy copies, trained for longer, fit the few training images too well. That training on copies is ahead
        # is no more to be seen after twice the passes.
        full = full.changed(unclaimed=(COPIES, f"{FILM}, trained on copies"))
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"images": 10_000, "latent_dim": 16, "hidden": (200, 200), "lr": 2e-3, "brief_lr": 5e-4, "power": 0.0},
            **{"ladder": (16.0, 8.0, 4.0, 2.0, 1.0, 0.5), "lowest": 0.25, "highest": 25.0, "passes": 40, "brief": 6},
            # A third way to train on is compared on the digits, and training on copies.
            **{"draws": 2, "measured": 2, "components": (10,)},
            kinds=tuple(kind for kind in KINDS if kind not in (UP, *ON_COPIES)),
        )
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "kinds": (FILM, APART), "components": (5,), "draws": 2, "measured": 4}
        return full.changed(passes=max(2, full.passes // 4), brief=2, **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 300, "draws": 1, "measured": 1, "components": (1,), "latent_dim": 3}
        return full.changed(**small, ladder=full.ladder[:2], passes=1, brief=1, seeds=(0, 1))
    return full


def run(plan: Plan, lab: Lab) -> Record:
    left_out = ("kinds", "passes", "brief", "largest_error", "unclaimed")
    common = {name: value for name, value in plan.settings.items() if name not in left_out}
    cells = [
        {"kind": kind, "passes": times * plan.passes, "brief": times * plan.brief} | common
        for times in (2, 1)  # the longest first
        for kind in plan.kinds
    ]
    cells += [
        {"kind": kind + UNTRAINED, "passes": plan.passes, "brief": plan.brief} | common for kind in plan.kinds if kind in MANY
    ]
    found = lab.map(price, cells, "ladders")
    rows = [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    frame = pd.DataFrame(rows)
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    longer: Any = frame[frame["passes"] == 2 * plan.passes].drop(columns="passes")
    priced = (longer["quantity"] == "nats") & (longer["level"] == plan.components[-1])
    longer = longer[priced | _of_prefixes(longer, plan.components[-1])]
    kept = pd.concat([whole, longer.assign(quantity=longer["quantity"] + TWICE)], ignore_index=True)
    return Record.of(__name__, plan, lab, kept.to_dict("records"), checks=_checks(plan, frame, whole), said=_said(plan, whole))


def price(
    dataset: str,
    binarize: str | None,
    images: int | None,
    kind: str,
    ladder: list[float],
    components: list[int],
    draws: int,
    measured: int,
    seeds: list[int],
    **settings: Any,
) -> dict[str, Any]:
    """The ladders of one kind, one for each seed: nats of codes, terms at each β, and how neighbours' means agree."""
    ds, rows = load(dataset, binarize, images), []
    for seed, views in zip(seeds, ladders(ds, kind, ladder, seeds=seeds, **settings), strict=True):
        with training.seeded(seed):
            train, test = ds.draw(ds.train), ds.draw(ds.test)
        place = {"objective": kind, "seed": seed}
        for beta, view in zip(ladder, views, strict=True):
            for split, x in (("train", train), ("test", test)):
                point = estimators.evaluate(view, x, beta, n_samples=measured)
                terms = {"rate": point.rate, "distortion": point.distortion}
                rows += [_row(name, value, place, split, beta=beta) for name, value in terms.items()]
        codes = [posterior.encode(view, test)[0] for view in views]
        for beta, coarse, fine in zip(ladder[1:], codes, codes[1:], strict=False):
            agreed = metrics.alignment(coarse, fine)
            measures = {"by channel": agreed.by_channel, "matched": agreed.matched, "CCA": agreed.cca}
            rows += [_row(name, value, place, "test", beta=beta) for name, value in measures.items()]
        for name, stages in coded(views, train, test, components, draws, measured, seed).items():
            sampler, gaussians = name
            where = place | {"sampler": sampler, "level": float(gaussians)}
            rows.append(_row("nats", sum(stages), where, "test", beta=ladder[-1]))
            if sampler in COUPLINGS:
                rows += [_row("stage", each, where, "test", beta=beta) for beta, each in zip(ladder, stages, strict=True)]
    return {"rows": rows}


def coded(
    views: list[Any], train: Tensor, test: Tensor, components: list[int], draws: int, measured: int, seed: int
) -> dict[tuple[str, int], list[float]]:
    """Nats of test images by each way to send them and number of Gaussians, a list of stages, from coarse to fine."""
    last, found = views[-1], {}
    found[PRIOR, 0] = [estimators.evaluate(last, test, n_samples=1).rate]
    for n in components:
        how: Any = {"n_components": n, "draws": draws, "seed": seed}
        found[ALONE, n] = [samplers.Mixture(last, train, **how).rate(test, measured, seed)]
        for coupling in COUPLINGS:
            chain = samplers.Chain(views, train, coupling=coupling, **how)
            found[coupling, n] = chain.rates(test, measured, seed).tolist()
        step = samplers.Chain([views[0], last], train, coupling="matrix", **how)
        found[STEP, n] = step.rates(test, measured, seed).tolist()
    return found


def ladders(
    ds: data.Dataset,
    kind: str,
    ladder: list[float],
    seeds: list[int],
    passes: int,
    brief: int,
    brief_lr: float,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    lowest: float,
    highest: float,
    power: float,
    store: str | None,
    device: str,
) -> list[list[Any]]:
    """For each seed the models of a kind, from coarse to fine."""
    shape: dict[str, Any] = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    config = schedule(ds, passes, batch, lr, device)
    how: Any = {"seeds": seeds, "config": config, "store": store}
    name = ON_COPIES.get(kind, kind.removesuffix(UNTRAINED))
    if name in MANY:
        make = partial(one_model, MANY[name], shape, (lowest, highest))
        if kind.endswith(UNTRAINED):
            every = []
            for seed in seeds:
                with training.seeded(seed):
                    every.append(make())
        else:
            of_pairs = pairs.Pairs(power, ladder[0] / ladder[1], pairs.COPY)
            objective = of_pairs if kind in ON_COPIES else objectives.MultiBeta(power)
            every = [each.model for each in sweep(make, ds, objectives=[objective], **how)]
        return [[model.at(beta) for beta in ladder] for model in every]
    if kind == APART:
        runs = sweep(partial(models.VAE, **shape), ds, ladder, **how)
        found = {(each.objective.beta, each.config.seed): each.model for each in runs}
        return [[found[beta, seed] for beta in ladder] for seed in seeds]
    if kind == COPIES:
        finest = [each.model for each in sweep(partial(models.VAE, **shape), ds, ladder[-1:], **how)]
        return _copies(ds, ladder, finest, how)
    order = ladder if kind == DOWN else ladder[::-1]
    rungs = [sweep(partial(models.VAE, **shape), ds, order[:1], **how)]
    if kind == BRIEF:
        how = how | {"config": schedule(ds, brief, batch, brief_lr, device)}
    for beta in order[1:]:
        started = iter([deepcopy(each.model) for each in rungs[-1]])
        rungs.append(sweep(lambda started=started: next(started), ds, [beta], **how))
    rungs = rungs if kind == DOWN else rungs[::-1]
    return [[each[i].model for each in rungs] for i in range(len(seeds))]


def _copies(ds: data.Dataset, ladder: list[float], finest: list[Any], how: dict[str, Any]) -> list[list[Any]]:
    """For each of these models of the smallest β the models of noisy copies of its codes, trained, and itself."""
    rungs = [finest]
    for beta in ladder[-2::-1]:
        started = iter([noisy(model, ds.train, beta / ladder[-1]) for model in finest])
        rungs.append([run.model for run in sweep(lambda started=started: next(started), ds, [beta], **how)])
    return [list(views)[::-1] for views in zip(*rungs, strict=True)]


def noisy(model: models.VAE, x: Tensor, times: float) -> models.VAE:
    """A model of noisy copies of another's codes, as at a β that is `times` as large, with a decoder that starts as its own.

    - `x`: images, by whose posteriors the noise is chosen.
    """
    config: Any = model.config
    made = models.VAE(**config | {"encoder": Noisy.of(model, x, times)})
    made.decoder.load_state_dict(model.decoder.state_dict())
    return made


class Noisy(nn.Module):
    """An encoder that is not trained: another's codes, times a number in each latent, with Gaussian noise of one variance.

    With the mean variance s² of a latent's posteriors it is a², (1 − t)/(1 − s²), and the noise's variance t − a²s², so that
    the mean variance is t. With t = min(1, s² times the ratio of both β) the linear VAE has its own posterior at the other β.
    """

    scale: Tensor
    noise: Tensor

    def __init__(self, encoder: nn.Module, scale: Float[Tensor, " k"], noise: Float[Tensor, " k"]):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("scale", scale)
        self.register_buffer("noise", noise)

    @classmethod
    def of(cls, model: models.VAE, x: Tensor, times: float) -> "Noisy":
        """The encoder of a β that is `times` that of `model`, by its posteriors of x."""
        std = posterior.encode(model, x)[1]
        least = 1 - 1e-6  # a latent that tells nothing is left alone
        own = std.double().square().mean(0).clamp(max=least)
        wanted = (times * own).clamp(max=1)
        square = (1 - wanted) / (1 - own)
        like: Any = model.prior_mean
        return cls(deepcopy(model.encoder), square.sqrt().to(like), (wanted - square * own).to(like))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x.flatten(1))
        return self.scale * mean, (self.scale.square() * log_variance.exp() + self.noise).log()


def one_model(conditioning: str, shape: dict[str, Any], beta_range: tuple[float, float]) -> models.MultiBetaVAE:
    """A new model of many β."""
    if conditioning == "concatenation":
        return Concatenated(**shape, beta_range=beta_range)
    return models.MultiBetaVAE(**shape, beta_range=beta_range, conditioning=conditioning)


class Concatenated(FreeVariance):
    """log β as one more input of encoder and decoder: a shift of their first layer that is linear in it, and nothing else."""

    def _build(self, network: str, hidden: tuple[int, ...], **own: nn.Module) -> None:
        super()._build(network, hidden, **own)
        self.response = _Input(self.beta_range, *(cast(Any, each).widths for each in (self.encoder, self.decoder)))


class _Input(nn.Module):
    def __init__(self, beta_range: tuple[float, float], *widths: list[int]):
        super().__init__()
        self.widths, self.scaled = widths, straight(beta_range)
        self.columns = nn.ModuleList(nn.Linear(1, each[0], bias=False) for each in widths)

    def forward(self, log_beta: Tensor) -> tuple[list[Tensor], ...]:
        scaled = self.scaled(log_beta)
        return tuple(self._parts(scaled, column(scaled), each) for column, each in zip(self.columns, self.widths, strict=True))

    @staticmethod
    def _parts(scaled: Tensor, shift: Tensor, widths: list[int]) -> list[Tensor]:
        parts: list[Tensor] = []
        for index, width in enumerate(widths):
            same = torch.ones_like(scaled).expand(*scaled.shape[:-1], width)
            parts += [same, shift if index == 0 else torch.zeros_like(same)]
        return parts


def _row(quantity: str, value: float, place: dict[str, Any], split: str, **more: Any) -> dict[str, Any]:
    return results.row_of(quantity, Estimate(value), **place, split=split, **more)


# What is claimed.


def overheads(frame: Any, gaussians: int, twice: bool = False) -> Any:
    """What sending a ladder costs more than its last code alone, as a share of that, for each kind, way and seed.

    - `frame`: a record's frame, or of two numbers of passes with a column `passes`.
    - `gaussians`: the number in the mixtures that price either.
    - `twice`: from a record's frame those after twice the plan's training, else after it.
    """
    frame = _after(frame, twice)
    nats = frame[(frame["quantity"] == "nats") & (frame["level"] == gaussians)]
    keys = [name for name in ("objective", "seed", "passes") if name in nats]
    alone = nats[nats["sampler"] == ALONE][[*keys, "value"]]
    both = nats[nats["sampler"] != ALONE].merge(alone, on=keys, suffixes=("", "_alone"))
    return both.assign(value=both["value"] / both["value_alone"] - 1, quantity="overhead")[
        [*keys, "sampler", "quantity", "value"]
    ]


def above(shares: Any) -> Any:
    """By how much each overhead is above that of one model with FiLM under copies by channel, in pairs of seeds."""
    keys = [name for name in ("seed", "passes") if name in shares]
    base = (shares["objective"] == FILM) & (shares["sampler"] == "channel")
    both = shares[~base].merge(shares.loc[base, [*keys, "value"]], on=keys, suffixes=("", "_base"))
    return both.assign(value=both["value"] - both["value_base"], quantity="overhead above FiLM's").drop(columns="value_base")


def prefixes(frame: Any, gaussians: int, twice: bool = False) -> Any:
    """What a receiver has who stops after some of the codes: the nats until then and the newest code's distortion.

    - `frame`: a record's.
    - `gaussians`: the number in the mixtures that price the codes.
    - `twice`: after twice the plan's training, else after it.

    Columns `nats` and `distortion` in an index of objective, seed and β, from coarse to fine; on test images, by channel, of
    models trained separately by matrix.
    """
    frame = _after(frame, twice)
    wide = frame[_of_prefixes(frame, gaussians)].pivot_table(
        index=["objective", "seed", "beta"], columns="quantity", values="value"
    )
    wide = wide.sort_index(level="beta", ascending=False, sort_remaining=False)
    nats = wide["stage"].groupby(level=["objective", "seed"]).cumsum()
    return pd.DataFrame({"nats": nats, "distortion": wide["distortion"]}).dropna()


def _after(frame: Any, twice: bool) -> Any:
    """The rows of a record after the plan's training or twice that, with the plain names of quantities."""
    mine = frame[frame["quantity"].str.endswith(TWICE) == twice]
    return mine.assign(quantity=mine["quantity"].str.removesuffix(TWICE))


def _of_prefixes(frame: Any, gaussians: int) -> Any:
    """Which rows prefixes are made from."""
    way = (frame["objective"] == APART).map({True: "matrix", False: "channel"})
    stages = (frame["quantity"] == "stage") & (frame["level"] == gaussians) & (frame["sampler"] == way)
    return stages | ((frame["quantity"] == "distortion") & (frame["split"] == "test"))


def _checks(plan: Plan, frame: Any, whole: Any) -> list[convergence.Check]:
    """Twice the passes for all: the sizes of the overheads of one model with FiLM, and the sides of what is clear of it."""
    trained = frame[~frame["objective"].str.endswith(UNTRAINED)]
    shares = overheads(trained, plan.components[-1])
    keys = ["objective", "sampler"]
    mine = shares[(shares["objective"] == FILM) & shares["sampler"].isin(COUPLINGS)]
    size = mine[mine["passes"] == plan.passes].groupby(keys)["value"].mean().abs() / 4
    limits: Any = size.clip(lower=plan.largest_error).rename("allowed").reset_index()
    apart = above(shares)
    claimed = convergence.without(apart[apart["passes"] == plan.passes], keys, plan.unclaimed)
    claims = convergence.clear(claimed, keys)[keys].drop_duplicates()
    kept = overheads(whole[~whole["objective"].str.endswith(UNTRAINED)], plan.components[-1])
    each = {f"{kind}, {way}": Estimate.over_runs(found["value"].to_numpy()) for (kind, way), found in kept.groupby(keys)}
    return [
        convergence.twice(mine.merge(limits), keys),
        convergence.not_claimed(convergence.same_side(apart.merge(claims), keys), plan.unclaimed),
        convergence.errors(each, plan.largest_error),
    ]


def _said(plan: Plan, whole: Any) -> str:
    shares = overheads(whole[~whole["objective"].str.endswith(UNTRAINED)], plan.components[-1])
    told = []
    for kind in plan.kinds:
        mine = shares[shares["objective"] == kind].assign(value=lambda each: 100 * each["value"])
        means = {way: Estimate.over_runs(each["value"].to_numpy()) for way, each in mine.groupby("sampler")}
        told.append(
            f"{kind} {means['independent']} with independent draws, {means['channel']} by channel, {means['matrix']} by matrix"
        )
    return f"Overhead of a ladder over its last code alone, in percent: {'; '.join(told)}."
