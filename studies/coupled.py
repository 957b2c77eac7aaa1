"""One model of many β trained on codes that are drawn together: does its ladder cost less, and does recursion draw from it?

Each example is at two neighbouring β, a coarse one and a fine one, with a code z of the one and z′ of the other. Three things
can be done with such a pair.

*Draw the two codes together, and train on D + βR of both.* The coarse code is a noisy copy of the fine one, as
`posterior.Coupling` has it, so that each alone has its own posterior's law. D + βR is a sum of means under these laws. So
neither its value nor its gradient changes in the mean, nor do the minima: what changes is the noise of the gradient alone.
Pairs that are drawn independently tell that from what twice the draws do.

*Ask the two decoders to agree.* To D + βR of both a weight w times

    C = E log p(x′|z′, β′) − log p(x′|z, β),    x′ the mean of p(x|z′, β′), which is held fixed,

is added: the nats by which the coarse code tells of the fine image less than the fine code does. For Bernoulli pixels and for
Gaussian ones of one σ it is KL(p(x|z′, β′) ‖ p(x|z, β)). What it asks for depends on how the codes are drawn. Let z be a *copy*
of z′ that knows nothing more of x. The best fine image is E[x|z′], and its mean given z is E[x|z], the best coarse image: C
then asks the coarse decoder for what D asks it for, and the coarse encoder for a code that tells more. Let z and z′ have the
*same noise*, as near as can be to z′ as a function of z. Then C asks the coarse decoder for the fine image of one z′ and not
for a mean of many, from each β to the next: noise of the prior is to be decoded to what the finest code would have given. The
consistency models of Song et al. (2023) and, with a VAE's encoder, CoVAE (Silvestri et al. 2025) are trained on this. CoVAE has
it in the place of D at all but the smallest β, and steps that shrink in training; here D stays, as the code is to refine x.

*Draw from the model by recursion*: z ~ p(z) at the largest β, then decode and encode at each smaller one. It fails where
decoded images are means, which encoders have not seen. Coarse decoders that agree with fine ones give images that they have.

C pulls the coarse β to another trade-off, too: it adds to what is decoded, and R weighs less beside it. So the same w is tried
with copies, which share this and not the other. And recursion is begun at each β of its ladder: a smaller one may be all it
needs.

Measured are the overhead of a ladder (`studies.ladder`), alignment, D, the regret of D + βR beside training as usual, and the
Fréchet distances of samplers (`studies.samplers`). Where recursion begins is chosen by the distance to validation images. On
MNIST and the glyphs there are three seeds, and what copies alone and no training do is left to the digits.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbvae import checks, data, estimators, metrics, models, objectives, posterior, results, samplers, training
from nbvae.results import Estimate
from studies import convergence, pairs
from studies import ladder as ladders
from studies.lab import Lab, sweep
from studies.objectives import likelihood, schedule
from studies.pairs import COPY, DRAWS, INDEPENDENT, SAME
from studies.plan import Plan as Common
from studies.plan import accept_labels, accept_ladder, load
from studies.record import Record
from studies.samplers import compared

QUESTION = "What does training on codes that are drawn together do for a ladder of codes, and for draws by recursion?"
CHAPTER = "07_alignment"
DATASETS = ("digits", "mnist", "glyphs")
UNTRAINED, USUAL = "untrained", "as usual"
PAIRS, COPIES = "independent pairs", "copies"
AGREE, FOLLOW = "consistent copies", "consistent noise"
KINDS = {UNTRAINED: None, USUAL: None, PAIRS: INDEPENDENT, COPIES: COPY, AGREE: COPY, FOLLOW: SAME}  # and how codes are drawn
RECURSION, CHOSEN, FIRST, STEP, MIXTURE, FLOOR = (
    "recursive",
    "recursive, chosen start",
    "first decoder",
    "learned step",
    "mixture",
    "training images",
)
COUPLINGS: tuple[posterior.Kind, ...] = ("independent", "channel")  # by matrix one model's ladder costs the same
# By how much a mean must differ to be claimed: shares, nats, and logarithms of ratios of Fréchet distances.
LEAST = {"overhead": 0.01, "alignment": 0.01, "last distortion": 0.1, "regret": 0.1, "frechet": 0.1}
PLACE = ["quantity", "than", "objective", "sampler"]


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `ladder`: βs of the codes that are sent, from coarse to fine; `recursion`: those that recursion goes down.
    - `kinds`: trainings, among `KINDS`; "as usual" and "independent pairs" must be two of them.
    - `ratio`: of the two β of a pair; `weight`: w of C, with copies and with the same noise.
    - `lowest`, `highest`, `power`, `latent_dim`, `hidden`, `batch`, `lr`, `draws`, `measured`: as in `studies.ladder`.
    - `passes`: over the training images; some seeds are also trained for twice as many, `again` of them.
    - `components`: of the mixtures of Gaussians.
    - `drawn`, `neighbours`, `nearest`, `resamplings`: as in `studies.samplers`.
    - `largest_error`, `largest_share`: the most that the standard error of a regret, in nats, and of a difference of overheads
      may be, unless it is at most a quarter of it.
    - `unclaimed`: what is measured and not claimed to be on one side of zero, by how its name begins, with quantity, what it is
      compared with, training and sampler, as "frechet mixture consistent noise recursive, x drawn".
    """

    ladder: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
    recursion: tuple[float, ...] = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
    kinds: tuple[str, ...] = tuple(KINDS)
    ratio: float = 2.0
    weight: float = 4.0
    lowest: float = 0.03
    highest: float = 16.0
    power: float = 0.25
    passes: int = 100
    again: int = 5
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 100
    lr: float = 4e-3
    components: int = 10
    draws: int = 5
    measured: int = 10
    drawn: int = 2000
    neighbours: int = 5
    nearest: int = 2000
    resamplings: int = 10
    largest_error: float = 0.1
    largest_share: float = 0.01
    unclaimed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        accept_ladder(self.ladder, self.lowest, self.highest)
        accept_ladder(self.recursion, self.lowest, self.highest)
        if self.recursion[-1] != self.ladder[-1]:
            raise ValueError("recursion must end at the last β of ladder, where the other samplers draw")
        for name in self.kinds:
            checks.choice("a kind", name, KINDS)
        if not {USUAL, PAIRS} <= {*self.kinds} or len({*self.kinds}) < len(self.kinds):
            raise ValueError(f"kinds must differ and have {USUAL!r} and {PAIRS!r}, which the others are compared with")
        checks.not_negative("weight", self.weight)
        for name in ("largest_error", "largest_share"):
            checks.positive(name, getattr(self, name))
        if not 1 < self.ratio <= self.highest / self.lowest:
            raise ValueError(f"ratio must be above 1 and leave both β of a pair in the range; got {self.ratio:g}")
        if not 2 <= self.again <= len(self.seeds):
            raise ValueError("errors need at least two seeds, also of those that are trained again")
        beginnings = [f"{what} {than}" for what in LEAST for than in (USUAL, PAIRS)] + [f"frechet {MIXTURE}"]
        convergence.accept_unclaimed(self.unclaimed, beginnings)


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"images": 10_000, "latent_dim": 16, "hidden": (200, 200), "lr": 2e-3, "power": 0.0, "passes": 20, "again": 3},
            **{"ladder": (16.0, 8.0, 4.0, 2.0, 1.0, 0.5), "recursion": (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)},
            **{"lowest": 0.25, "highest": 25.0, "seeds": (0, 1, 2), "draws": 1, "measured": 1, "drawn": 10_000},
            **{"largest_error": 0.25, "kinds": (USUAL, PAIRS, AGREE, FOLLOW)},
        )
    # Found to be needed: longer training moves these to the other side, or so far that no side is seen.
    if dataset == "digits":
        over = (f"overhead {than} {AGREE} channel" for than in (USUAL, PAIRS))
        drawn = f"frechet {MIXTURE} {FOLLOW} recursive, x drawn"
        full = full.changed(unclaimed=(drawn, *over, f"regret {PAIRS} consistent"))
    if dataset == "mnist":
        full = full.changed(unclaimed=(f"frechet {MIXTURE} {FOLLOW} {CHOSEN}",))
    if dataset == "glyphs":
        drawn = (
            f"frechet {USUAL} {AGREE} {CHOSEN}",
            f"frechet {MIXTURE} {AGREE} {CHOSEN}",
            f"frechet {MIXTURE} {AGREE} aggregate",
        )
        steps = (f"frechet {than} {PAIRS} {STEP}" for than in (USUAL, MIXTURE))
        of_pairs = (f"{what} {PAIRS}" for what in (f"regret {USUAL}", f"last distortion {USUAL}"))
        usual = (f"{what} {PAIRS} {USUAL}" for what in ("regret", "last distortion"))
        full = full.changed(binarize="threshold", unclaimed=(*drawn, *steps, *of_pairs, *usual))
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "again": 2, "kinds": (USUAL, PAIRS, FOLLOW), "components": 5, "draws": 2}
        return full.changed(passes=max(2, full.passes // 8), measured=2, drawn=1200, **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 300, "draws": 1, "measured": 1, "components": 1, "latent_dim": 3, "resamplings": 5}
        short = {"ladder": full.ladder[-2:], "recursion": full.ladder[-2:]}
        return full.changed(**small, **short, passes=1, seeds=(0, 1), again=2, drawn=200, kinds=(USUAL, PAIRS, FOLLOW))
    return full


def run(plan: Plan, lab: Lab) -> Record:
    labelled = load(plan.dataset, plan.binarize)
    accept_labels(labelled)
    metrics.classifier(labelled)  # later calls find it in the cache
    apart = ("kinds", "passes", "again", "seeds", "largest_error", "largest_share", "unclaimed")
    common = {name: value for name, value in plan.settings.items() if name not in apart}
    cells = [
        {"kind": kind, "passes": passes, "seeds": seeds} | common
        for passes, seeds in ((2 * plan.passes, plan.seeds[: plan.again]), (plan.passes, plan.seeds))  # the longest first
        for kind in plan.kinds
        if kind != UNTRAINED or passes == plan.passes
    ]
    found = lab.map(measure, cells, "trainings")
    frame = pd.DataFrame(
        [row | {"passes": cell["passes"]} for each, cell in zip(found, cells, strict=True) for row in each["rows"]]
    )
    whole: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(__name__, plan, lab, whole.to_dict("records"), checks=_checks(plan, frame), said=_said(plan, whole))


def measure(
    dataset: str,
    binarize: str | None,
    images: int | None,
    ladder: list[float],
    recursion: list[float],
    kind: str,
    components: int,
    draws: int,
    measured: int,
    drawn: int,
    neighbours: int,
    nearest: int,
    resamplings: int,
    seeds: list[int],
    **settings: Any,
) -> dict[str, Any]:
    """The models of one kind, one for each seed: terms at each β, agreement of neighbours, nats of the ladder, and samplers."""
    ds, whole, rows = load(dataset, binarize, images), load(dataset, binarize), []
    extract = metrics.classifier(whole)
    real, held = extract(ds.test), extract(ds.validation)
    for seed, many in zip(seeds, train(ds, kind, seeds=seeds, **settings), strict=True):
        with training.seeded(seed):
            x, test = ds.draw(ds.train), ds.draw(ds.test)
            floor = whole.draw(whole.train[torch.randperm(len(whole.train))[:drawn]])
        place: dict[str, Any] = {"objective": kind, "seed": seed, "split": "test"}
        views = [many.at(beta) for beta in ladder]
        for beta, view in zip(ladder, views, strict=True):
            for split, each in (("train", x), ("test", test)):
                point = estimators.evaluate(view, each, beta, n_samples=measured)
                terms = {"rate": point.rate, "distortion": point.distortion, "loss": point.loss()}
                rows += [_row(name, value, place | {"split": split}, beta=beta) for name, value in terms.items()]
        means = [posterior.encode(view, test)[0] for view in views]
        for i, beta in enumerate(ladder[1:]):
            agreed = metrics.alignment(means[i], means[i + 1])
            measures = {"by channel": agreed.by_channel, "matched": agreed.matched, "CCA": agreed.cca, "CKA": agreed.cka}
            rows += [_row(name, value, place, beta=beta) for name, value in measures.items()]
            for way in DRAWS:
                value = disagreements(views[i], views[i + 1], test, way, seed)
                rows.append(_row("disagreement", value, place, sampler=way, beta=beta))
        how: Any = {"n_components": components, "draws": draws, "seed": seed}
        last = views[-1]
        mixture = samplers.Mixture(last, x, **how)
        step = samplers.Chain([many.at(recursion[0]), last], x, coupling="channel", **how)
        nats = {ladders.ALONE: mixture.rate(test, measured, seed), STEP: step.rates(test, measured, seed).sum().item()}
        for way in COUPLINGS:
            nats[way] = samplers.Chain(views, x, coupling=way, **how).rates(test, measured, seed).sum().item()
        rows += [_row("nats", each, place, sampler=way, level=float(components), beta=ladder[-1]) for way, each in nats.items()]
        if kind == UNTRAINED:  # its images are all alike
            continue
        made: dict[str, Any] = {
            "recursive, x drawn": samplers.Recursive(many, recursion, draw_x=True),
            "recursive, one step": samplers.Recursive(many, [recursion[0], recursion[-1]]),
            FIRST: samplers.Prior(many.at(recursion[0])),
            "prior": samplers.Prior(last),
            STEP: step,
            MIXTURE: mixture,
            "aggregate": samplers.Aggregate(last, x),
        }
        features = {name: _features(extract, each, drawn, seed) for name, each in made.items()}
        started, known = {}, {}
        for i, beta in enumerate(recursion[:-1]):
            started[beta] = _features(extract, samplers.Recursive(many, recursion[i:]), drawn, seed)
            for split, images_of in (("validation", held), ("test", real)):
                distance = metrics.frechet_distance(started[beta], images_of, n_bootstrap=resamplings, seed=seed).estimate()
                rows.append(results.row_of("frechet from", distance, **place | {"split": split}, sampler=RECURSION, beta=beta))
                known[split, beta] = distance.value
        best = min(started, key=lambda beta: known["validation", beta])
        features |= {RECURSION: started[recursion[0]], CHOSEN: started[best]}
        if kind == USUAL:
            features[FLOOR] = extract(floor)
        for name, each in features.items():
            shares = compared(each, real, neighbours, nearest, resamplings, seed)
            rows += [results.row_of(quantity, value, **place, sampler=name) for quantity, value in shares.items()]
    return {"rows": rows}


def train(
    ds: data.Dataset,
    kind: str,
    ratio: float,
    weight: float,
    lowest: float,
    highest: float,
    power: float,
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    seeds: list[int],
    store: str | None,
    device: str,
) -> list[models.MultiBetaVAE]:
    """The models of one kind, trained in one stack, one for each seed."""
    shape: dict[str, Any] = {"shape": ds.shape, "latent_dim": latent_dim, "hidden": hidden} | likelihood(ds)
    make = partial(models.MultiBetaVAE, **shape, beta_range=(lowest, highest))
    if kind == UNTRAINED:
        every = []
        for seed in seeds:
            with training.seeded(seed):
                every.append(make())
        return every
    draws = KINDS[kind]
    own = pairs.Pairs(power, ratio, draws or INDEPENDENT, weight if kind in (AGREE, FOLLOW) else 0.0)
    objective = objectives.MultiBeta(power) if draws is None else own
    config = schedule(ds, passes, batch, lr, device)
    return [each.model for each in sweep(make, ds, objectives=[objective], seeds=seeds, config=config, store=store)]


@torch.no_grad()
def disagreements(coarse: Any, fine: Any, x: Tensor, draws: str, seed: int) -> float:
    """C of two views of one model, nats, a mean over the examples x, with one draw of both codes of each."""
    x = x.to(coarse.prior().mean)
    (mean, std), (fine_mean, fine_std) = (posterior.encode(view, x) for view in (coarse, fine))
    with training.seeded(seed, x.device):
        own, other = torch.randn_like(mean), torch.randn_like(mean)
    tied = pairs.correlation(draws, std, fine_std)
    z = mean + std * (tied * other + (1 - tied.square()).sqrt() * own)
    return pairs.disagreement(fine.likelihood(fine_mean + fine_std * other), coarse.likelihood(z)).mean().item()


def _features(extract: Any, sampler: samplers.Sampler, drawn: int, seed: int) -> Tensor:
    return extract(sampler.sample(drawn, torch.Generator().manual_seed(seed)))


def _row(quantity: str, value: float, place: dict[str, Any], **more: Any) -> dict[str, Any]:
    return results.row_of(quantity, Estimate(value), **place, **more)


# What is claimed.


def effects(frame: Any, gaussians: int) -> Any:
    """What a training changes, seed by seed: a row for each `quantity`, `than`, `objective`, `sampler` and seed.

    - `frame`: a record's frame, or of two numbers of passes with a column `passes`.
    - `gaussians`: the number in the mixtures that price codes.

    Than training as usual, and than independent pairs: the overhead of a ladder by each way to draw its codes, the alignment
    by channel of neighbours and the regret of D + βR on test images, means over the ladder, and D of the last rung. Than the
    same sampler of a model that was trained as usual, and than its mixture: the logarithm of the ratio of Fréchet distances.
    """
    keys = [name for name in ("seed", "passes") if name in frame]
    test: Any = frame[(frame["split"] == "test") & (frame["objective"] != UNTRAINED)]
    told = {"loss": "regret", "by channel": "alignment"}
    over = test[test["quantity"].isin(told)].groupby(["quantity", "objective", *keys])["value"].mean().reset_index()
    over = over.assign(quantity=over["quantity"].map(told))
    last = test[(test["quantity"] == "distortion") & (test["beta"] == test["beta"].min())].assign(quantity="last distortion")
    whole = pd.concat([over, last]).assign(sampler="")
    shares = ladders.overheads(test, gaussians)
    found = []
    for than in (USUAL, PAIRS):
        for table in (whole, shares[shares["sampler"].isin(COUPLINGS)]):
            by = ["quantity", "sampler", *keys]
            base = table.loc[table["objective"] == than, [*by, "value"]]
            both = table[table["objective"] != than].merge(base, on=by, suffixes=("", "_base"))
            found.append(both.assign(value=both["value"] - both["value_base"], than=than))
    drawn = test[(test["quantity"] == "frechet") & (test["sampler"] != FLOOR)]
    usual = drawn[drawn["objective"] == USUAL]
    for than, base, on in ((USUAL, usual, ["sampler", *keys]), (MIXTURE, usual[usual["sampler"] == MIXTURE], keys)):
        both = drawn.merge(base[[*on, "value"]], on=on, suffixes=("", "_base"))
        same = (both["objective"] == USUAL) & ((both["sampler"] == MIXTURE) | (than == USUAL))
        found.append(both[~same].assign(value=np.log(both["value"] / both["value_base"])[~same], than=than))
    return pd.concat(found)[[*PLACE, *keys, "value"]]


def claimed(changes: Any) -> Any:
    """The rows of `effects`, of one number of passes, whose side is claimed: it is clear, and large enough to matter."""
    large = changes.groupby(PLACE)["value"].transform("mean").abs() > changes["quantity"].map(LEAST)
    return convergence.clear(changes[large], PLACE)


def _checks(plan: Plan, frame: Any) -> list[convergence.Check]:
    """Twice the passes against the sides that are claimed; and errors of overheads and regrets, whether claimed or not."""
    changes = effects(frame, plan.components)
    once = changes[changes["passes"] == plan.passes]
    claims = convergence.without(claimed(once), PLACE, plan.unclaimed)[PLACE].drop_duplicates()
    both = changes[changes["seed"].isin(plan.seeds[: plan.again])].merge(claims)
    known = once[once["than"] == USUAL].groupby(PLACE, sort=False)["value"]
    means = {key: Estimate.over_runs(each.to_numpy()) for key, each in known}
    own = {name: {f"{key[2]} {key[3]}".strip(): mean for key, mean in means.items() if key[0] == name} for name in LEAST}
    return [
        convergence.not_claimed(convergence.same_side(both, PLACE[1:]), plan.unclaimed),
        _named("regrets", convergence.errors(own["regret"], plan.largest_error)),
        _named("overheads", convergence.errors(own["overhead"], plan.largest_share)),
    ]


def _named(what: str, check: convergence.Check) -> convergence.Check:
    return convergence.Check(f"{check.name}: {what}", check.passed, check.found)


def _said(plan: Plan, whole: Any) -> str:
    changes = effects(whole, plan.components).query("than == @USUAL")
    shares = ladders.overheads(whole, plan.components).assign(quantity="overhead")
    every = pd.concat([shares, whole[whole["quantity"] == "frechet"], changes[changes["quantity"] == "regret"]])
    known = every.groupby(["objective", "quantity", "sampler"])["value"]
    means = {key: Estimate.over_runs(each.to_numpy()) for key, each in known}
    told = []
    for kind in plan.kinds:
        if kind == UNTRAINED:
            continue
        over, regret = means[kind, "overhead", "channel"], means.get((kind, "regret", ""))
        text = f"{kind}: " + ("" if regret is None else f"{regret:+} nats of regret, ")
        text += f"{100 * over.value:.3g} ± {100 * over.stderr:.1g} percent of overhead by channel, distances "
        shown = (RECURSION, CHOSEN, FIRST, STEP, MIXTURE, "aggregate")
        told.append(text + ", ".join(f"{name} {means[kind, 'frechet', name]}" for name in shown))
    return f"Ladders, and samplers at β = {plan.ladder[-1]:g} by Fréchet distance. {'; '.join(told)}."
