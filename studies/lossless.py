"""Bytes: images coded without loss by bits-back, and in steps from coarse to fine, against what everyone has.

A VAE is trained, and codes the test images by bits-back (`coding.compress`); its price should be −ELBO. The same images go
through gzip, bz2, xz, PNG and WebP, all images as one file, and through independent pixels, whose probabilities are those of
the training images. Grey images likewise, by a discretised decoder.

One model of many β, on its ladder, codes some test images as an embedded stream (`coding.Embedded`): for each prefix there are
nats, bytes and squared error. JPEG, whose headers are not counted, has bytes and squared error too.
"""

import bz2
import gzip
import io
import lzma
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from nbvae import checks, coding, data, estimators, models, results, samplers, training
from nbvae.results import Estimate
from studies import convergence
from studies.lab import Lab, sweep
from studies.ladder import FILM, ladders
from studies.objectives import schedule
from studies.plan import Plan as Common
from studies.plan import accept_ladder, load
from studies.record import Record

QUESTION = "What do images cost in bytes, without loss and in steps, against −ELBO and against the usual formats?"
CHAPTER = "09_bytes"
DATASETS = ("digits", "mnist", "glyphs")
BINARY, GREY = "black and white", "grey"
NET, FILE, ELBO, PIXELS = "bits-back", "bits-back, whole file", "−ELBO", "independent pixels"
GENERAL = {
    "gzip": partial(gzip.compress, mtime=0),
    "bz2": bz2.compress,
    "xz": partial(lzma.compress, preset=6 | lzma.PRESET_EXTREME),
}
FORMATS = (*GENERAL, "PNG", "WebP")
EMBEDDED, ALONE, JPEG = "embedded", "last code alone", "JPEG"
LIMITS = {BINARY: 0.01, GREY: 0.02}  # by what share the net size may differ from −ELBO


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Settings of the study.

    - `levels`: the grey values of the images before they are made black and white; 0 for no grey images.
    - `passes`: over the training images; all is also trained for twice as many, or half.
    - `against`: by which factor those differ, 2 or .5.
    - `again`: for how many seeds.
    - `latent_dim`, `hidden`, `batch`, `lr`: of the models and their training, under a one-cycle schedule.
    - `ladder`: βs from coarse to fine; `lowest`, `highest`, `power`: of the model of many β, as in the study of ladders.
    - `components`, `draws`: of the densities of each code given the one before.
    - `coded`: how many test images the embedded stream has; `bits`, `spare`: of its search, as for `coding.Embedded`.
    - `qualities`: of JPEG.
    - `largest_error`: the most that the standard error of bits per pixel may be, unless it is at most a quarter of them.
    """

    levels: int = 17
    passes: int = 100
    against: float = 2.0
    again: int = 3
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 100
    lr: float = 4e-3
    ladder: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
    lowest: float = 0.03
    highest: float = 4.0
    power: float = 0.25
    components: int = 10
    draws: int = 10
    coded: int = 100
    bits: float = 16.0
    spare: float = 16.0
    qualities: tuple[int, ...] = (1, 5, 10, 20, 30, 50, 75, 90)
    largest_error: float = 0.005
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        accept_ladder(self.ladder, self.lowest, self.highest)
        convergence.accept_against(self.passes, self.against)
        for name in ("passes", "components", "draws", "coded", "again"):
            checks.whole(name, getattr(self, name))
        if self.levels != 0:
            checks.whole("levels", self.levels, minimum=2)
        if len(self.seeds) < 2 or self.again < 2:
            raise ValueError("errors need at least two seeds, for both numbers of passes")
        if len(self.qualities) < 2 or list(self.qualities) != sorted({*self.qualities}) or not 0 < self.qualities[0] <= 95:
            raise ValueError("qualities must be at least two whole numbers from 1 to 95 that rise")


def plan(dataset: str, budget: str) -> Plan:
    full = Plan(dataset=dataset)
    if dataset in ("mnist", "glyphs"):
        full = full.changed(
            **{"levels": 256, "latent_dim": 24, "hidden": (400, 400), "batch": 128, "lr": 2e-3, "passes": 40, "power": 0.0},
            **{"ladder": (16.0, 8.0, 4.0, 2.0, 1.0, 0.5), "lowest": 0.25, "highest": 25.0, "draws": 2, "against": 0.5},
            **{"bits": 18.0},
        )
    if dataset == "glyphs":
        full = full.changed(binarize="threshold")
    if dataset.lower().endswith(".npz"):
        full = full.changed(levels=grey_values(load(dataset, None)))
    if budget == "quick":
        few = {"images": 2000, "seeds": (0, 1), "again": 2, "components": 3, "draws": 2, "coded": 40, "bits": 13.0}
        return full.changed(passes=max(2, full.passes // 8 * 2), **few).stretched("passes")
    if budget == "smoke":
        small = {"hidden": (16,), "images": 200, "latent_dim": 2, "components": 1, "draws": 1, "coded": 5, "bits": 10.0}
        return full.changed(**small, ladder=full.ladder[:2], passes=2, seeds=(0, 1), again=2, qualities=(10, 90))
    return full


def run(plan: Plan, lab: Lab) -> Record:
    place = {"dataset": plan.dataset, "images": plan.images}
    kinds = {BINARY: (plan.binarize, 2)} | ({GREY: (None, plan.levels)} if plan.levels else {})
    how = {name: plan.settings[name] for name in ("latent_dim", "hidden", "batch", "lr")}
    trained = convergence.trained(plan)
    usual = [
        place | {"kind": kind, "binarize": binarize, "levels": levels, "seeds": plan.settings["seeds"]}
        for kind, (binarize, levels) in kinds.items()
    ]
    whole = [
        place | how | {"kind": kind, "binarize": binarize, "levels": levels, "seed": seed, "passes": passes}
        for passes, seeds in trained.items()
        for kind, (binarize, levels) in kinds.items()
        for seed in seeds
    ]
    names = ("ladder", "lowest", "highest", "power", "components", "draws", "coded", "bits", "spare")
    steps = {name: plan.settings[name] for name in names} | {"binarize": plan.binarize}
    staged = [place | how | steps | {"seed": seed, "passes": passes} for passes, seeds in trained.items() for seed in seeds]
    lossy = [
        place
        | {"binarize": plan.binarize, "coded": plan.coded}
        | {name: plan.settings[name] for name in ("qualities", "seeds")}
    ]
    rows = []
    for function, cells in ((formats, usual), (price, whole), (steps_of, staged), (jpeg, lossy)):
        for found, cell in zip(lab.map(function, cells, function.__name__), cells, strict=True):
            rows += [row | {"passes": cell.get("passes", plan.passes)} for row in found["rows"]]
    frame = pd.DataFrame(rows)
    mine: Any = frame[frame["passes"] == plan.passes].drop(columns="passes")
    return Record.of(__name__, plan, lab, mine.to_dict("records"), checks=_checks(plan, frame), said=_said(plan, mine))


def formats(
    dataset: str,
    binarize: str | None,
    images: int | None,
    kind: str,
    levels: int,
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """Bits per pixel of the test images in the usual formats, and by independent pixels."""
    ds = accepted(dataset, binarize, images, levels)
    train, test = (numbers(x, levels) for x in drawn(ds, 0))
    sizes: dict[str, float] = {name: 8.0 * each for name, each in in_formats(test, levels).items()}
    sizes[PIXELS] = independent(train, test, levels)
    rows = []
    for seed in seeds:  # that nothing here depends on, so that it can be compared with what does
        place = {"objective": kind, "seed": seed, "split": "test"}
        for name, bits in sizes.items():
            each = Estimate(bits / test.size, n=len(test))
            rows.append(results.row_of("bits per pixel", each, **place, sampler=name))
    return {"rows": rows}


def price(
    dataset: str,
    binarize: str | None,
    images: int | None,
    kind: str,
    levels: int,
    seed: int,
    passes: int,
    latent_dim: int,
    hidden: list[int],
    batch: int,
    lr: float,
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """One VAE: what the test images cost by bits-back, net and as a file, and its −ELBO."""
    ds = accepted(dataset, binarize, images, levels)
    grey = {"likelihood": "discretized_logistic", "sigma": "z_diag", "levels": levels}
    make = partial(models.VAE, shape=ds.shape, latent_dim=latent_dim, hidden=hidden, **({} if levels == 2 else grey))
    config = schedule(ds, passes, batch, lr, device)
    [trained] = sweep(make, ds, [1.0], seeds=[seed], config=config, store=store)
    _, test = drawn(ds, seed)
    stream = coding.compress(trained.model, test)
    if not torch.equal(coding.decompress(trained.model, stream), test.cpu()):
        raise ValueError("the images did not come back as they were")
    found, point = coding.report(stream), estimators.evaluate(trained.model, test)
    n = math.prod(ds.shape)
    pixels = {NET: found.bits_per_dimension, FILE: 8 * found.size / (found.count * n)}
    pixels[ELBO] = (point.rate + point.distortion) / (n * math.log(2))
    place = {"objective": kind, "seed": seed, "split": "test"}
    rows = [
        results.row_of("bits per pixel", Estimate(each, n=len(test)), **place, sampler=name) for name, each in pixels.items()
    ]
    parts = {"header": found.header, "initial": found.initial, "net": found.net}
    rows += [results.row_of("bytes", Estimate(each, n=len(test)), **place, sampler=name) for name, each in parts.items()]
    return {"rows": rows}


def steps_of(
    dataset: str,
    binarize: str | None,
    images: int | None,
    seed: int,
    ladder: list[float],
    components: int,
    draws: int,
    coded: int,
    bits: float,
    spare: float,
    passes: int,
    **settings: Any,
) -> dict[str, Any]:
    """An embedded stream: for each prefix nats, bytes and squared error of an image, and the overhead of its last blocks.

    Beside it the nats of the last code alone, under as many Gaussians.
    """
    ds = accepted(dataset, binarize, images, 2)
    brief = {"brief": 1, "brief_lr": 1e-3}  # of another kind of ladder
    [views] = ladders(ds, FILM, ladder, seeds=[seed], passes=passes, **brief, **settings)
    train, test = drawn(ds, seed)
    x = test[:coded]
    chain = samplers.Chain(views, train, n_components=components, draws=draws, seed=seed, coupling="channel")
    embedded = coding.Embedded(chain, bits=bits, spare=spare, seed=seed)
    found = embedded.encode(x)
    rows, nats, size = [], 0.0, 0
    for number, (beta, rung) in enumerate(zip(ladder, found.rungs, strict=True), 1):
        nats, size = nats + rung.nats / len(x), size + rung.size
        images_ = embedded.decode(found.prefix(number))
        told = {"nats": nats, "bytes": size / len(x), "mse": error(images_, x), "overhead": rung.overhead}
        told |= {"bits of a block": rung.nats / math.log(2) / rung.blocks, "short": rung.short / rung.blocks}
        place = {"objective": EMBEDDED, "beta": beta, "seed": seed, "split": "test"}
        rows += [results.row_of(name, Estimate(each, n=len(x)), **place) for name, each in told.items()]
    alone = samplers.Mixture(views[-1], train, n_components=components, draws=draws, seed=seed).rate(x, 20, seed)
    place = {"objective": ALONE, "beta": ladder[-1], "seed": seed, "split": "test"}
    return {"rows": [*rows, results.row_of("nats", Estimate(alone, n=len(x)), **place)]}


def jpeg(
    dataset: str,
    binarize: str | None,
    images: int | None,
    coded: int,
    qualities: list[int],
    seeds: list[int],
    store: str | None,
    device: str,
) -> dict[str, Any]:
    """JPEG of each image, without its headers: bytes and squared error of an image."""
    ds = accepted(dataset, binarize, images, 2)
    rows = []
    for seed in seeds:
        x = drawn(ds, seed)[1][:coded].cpu()
        for quality in qualities:
            made = [as_jpeg(image, quality) for image in numbers(x, 256)[:, 0].astype(np.uint8)]
            again = torch.from_numpy(np.stack([image for _, image in made])).unsqueeze(1) / 255
            place = {"objective": JPEG, "level": float(quality), "seed": seed, "split": "test"}
            told = {"bytes": float(np.mean([size for size, _ in made])), "mse": error(again, x)}
            rows += [results.row_of(name, Estimate(each, n=len(x)), **place) for name, each in told.items()]
    return {"rows": rows}


# What is coded, and by what.


def accepted(dataset: str, binarize: str | None, images: int | None, levels: int) -> data.Dataset:
    """The data set, if its images can be coded in this way; `ValueError` for others."""
    ds = load(dataset, binarize, images)
    if len(ds.shape) != 3 or ds.shape[0] != 1:
        raise ValueError(f"dataset {ds.name} must have images of one channel, (1, height, width); it has {ds.shape}")
    drawn_anew = ds.binarize == "dynamic"
    if levels == 2 and not (ds.is_binary and (drawn_anew or ((ds.test == 0) | (ds.test == 1)).all())):
        raise ValueError(f"dataset {ds.name} must have pixels of 0 and 1: give binarize, or an .npz of such images")
    return ds


def grey_values(ds: data.Dataset) -> int:
    """How many grey values the images of a reader's file have, 17 or 256; 0 if they have others, or black and white alone.

    >>> grey_values(data.load("digits", None)), grey_values(data.load("digits"))
    (17, 0)
    """
    both = torch.cat([ds.train.flatten(), ds.test.flatten()])
    if ((both == 0) | (both == 1)).all():
        return 0
    return next((levels for levels in (17, 256) if torch.equal((both * (levels - 1)).round() / (levels - 1), both)), 0)


def drawn(ds: data.Dataset, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test images; where every look at them is a new draw, one."""
    with training.seeded(seed):
        return ds.draw(ds.train), ds.draw(ds.test)


def numbers(x: torch.Tensor, levels: int) -> np.ndarray:
    """Grey values 0, …, levels − 1, (n, 1, height, width)."""
    return (x.cpu().double() * (levels - 1)).round().long().numpy()


def in_formats(x: np.ndarray, levels: int) -> dict[str, int]:
    """Bytes of all images in one file of each of `FORMATS`.

    - `x`: grey values (n, 1, height, width) of `levels`.

    Compressors of any data are given one pixel a byte, and, of black and white, eight; the smaller file counts. Formats of
    pictures are given all images side by side, as near to a square as they go.

    >>> found = in_formats(np.zeros((10, 1, 8, 8), dtype=int), 2)
    >>> list(found), max(found.values()) < 200
    (['gzip', 'bz2', 'xz', 'PNG', 'WebP'], True)
    """
    one = x.astype(np.uint8)
    contents = [one.tobytes(), *([np.packbits(one).tobytes()] if levels == 2 else [])]
    sizes = {name: min(len(each(content)) for content in contents) for name, each in GENERAL.items()}
    n, _, height, width = x.shape
    columns = max(1, round(math.sqrt(n * height / width)))
    lines = math.ceil(n / columns)
    board = np.zeros((lines * columns, height, width), np.uint8)
    board[:n] = one[:, 0]
    board = board.reshape(lines, columns, height, width).transpose(0, 2, 1, 3).reshape(lines * height, columns * width)
    picture = Image.fromarray(board * 255 if levels == 2 else board)
    plain = picture.convert("1") if levels == 2 else picture
    sizes["PNG"] = len(_saved(plain, "PNG", optimize=True))
    sizes["WebP"] = len(_saved(picture.convert("RGB"), "WEBP", lossless=True, quality=100, method=6))
    return sizes


def independent(train: np.ndarray, test: np.ndarray, levels: int) -> float:
    """Bits of all test images if every pixel has the frequencies of the training images, each value counted once more.

    >>> half = np.array([0, 1]).reshape(2, 1, 1, 1)
    >>> independent(half, half, 2)
    2.0
    """
    bits, rows = 0.0, np.arange(levels)
    for pixel, mine in zip(train.reshape(len(train), -1).T, test.reshape(len(test), -1).T, strict=True):
        counts = np.bincount(pixel, minlength=levels)[rows] + 1.0
        bits -= float(np.log2(counts[mine] / counts.sum()).sum())
    return bits


def as_jpeg(image: np.ndarray, quality: int) -> tuple[int, np.ndarray]:
    """Bytes of a JPEG between the headers and the end mark, and the image (height, width) that it decodes to.

    >>> size, again = as_jpeg(np.full((8, 8), 255, np.uint8), 90)
    >>> size < 5, bool((again == 255).all())
    (True, True)
    """
    content = _saved(Image.fromarray(image), "JPEG", quality=quality)
    start = content.index(b"\xff\xda")  # of the scan, whose header tells its own length
    start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return len(content) - start - 2, np.asarray(Image.open(io.BytesIO(content)))


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    """‖x − x̂‖², a sum over pixels and a mean over images."""
    return (found.cpu().double() - x.cpu().double()).square().flatten(1).sum(1).mean().item()


def _saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


# What is claimed.


def beside_elbo(frame: Any) -> Any:
    """By what share the net size is above −ELBO, for each kind of images and seed (and number of passes, if there is one)."""
    mine = frame[frame["quantity"] == "bits per pixel"]
    keys = [name for name in ("objective", "seed", "passes") if name in mine]
    net, elbo = (mine.loc[mine["sampler"] == name, [*keys, "value"]] for name in (NET, ELBO))
    both: Any = net.merge(elbo, on=keys, suffixes=("", "_elbo"))
    return both.assign(value=both["value"] / both["value_elbo"] - 1, quantity="above −ELBO")[[*keys, "quantity", "value"]]


def beside_jpeg(frame: Any) -> Any:
    """What JPEG does at the bytes of each prefix of the embedded stream, and at its squared error, for each β and seed.

    `quantity` is "mse of JPEG" at equal bytes, or "bytes of JPEG" at equal error. Between qualities values are interpolated
    linearly; for prefixes with fewer bytes than any JPEG, or more error, and beyond the other end, they are nan.
    """
    wide: Any = frame[frame["objective"] == JPEG].pivot_table(index=["seed", "level"], columns="quantity", values="value")
    stream: Any = frame[frame["objective"] == EMBEDDED].pivot_table(index=["seed", "beta"], columns="quantity", values="value")
    rows = []
    for (seed, beta), each in stream.iterrows():
        for at, told in (("bytes", "mse"), ("mse", "bytes")):
            curve = wide.loc[seed].sort_values(at)
            value = float(np.interp(each[at], curve[at], curve[told], left=math.nan, right=math.nan))
            mine = {"beta": beta, "seed": seed, "bytes": each["bytes"], "mse": each["mse"]}
            rows.append(mine | {"quantity": f"{told} of JPEG", "value": value})
    return pd.DataFrame(rows)


def _checks(plan: Plan, frame: Any) -> list[convergence.Check]:
    """Other passes move no size by much; sizes are known well enough; and net sizes are −ELBO."""
    sizes = frame[(frame["quantity"] == "bits per pixel") & (frame["sampler"] == NET)]
    sizes = sizes[["objective", "seed", "passes", "quantity", "value"]]
    sizes = sizes[sizes["seed"].isin(plan.seeds[: plan.again])]
    first = sizes[sizes["passes"] == plan.passes].groupby("objective")["value"].mean() / 20
    limits: Any = first.clip(lower=plan.largest_error).rename("allowed").reset_index()
    mine = frame[frame["passes"] == plan.passes]
    every = mine[(mine["quantity"] == "bits per pixel") & (mine["sampler"] == NET)]
    each = {kind: Estimate.over_runs(found["value"].to_numpy()) for kind, found in every.groupby("objective")}
    return [
        convergence.twice(sizes.merge(limits), ["objective"]),
        convergence.errors(each, plan.largest_error),
        agreed(beside_elbo(mine)),
    ]


def agreed(shares: Any) -> convergence.Check:
    """Whether net sizes are −ELBO, up to `LIMITS`, as means over seeds.

    >>> frame = pd.DataFrame({"objective": GREY, "seed": [0, 1], "value": [0.01, 0.02]})
    >>> agreed(frame).passed, agreed(frame.assign(objective=BINARY)).passed
    (True, False)
    """
    found = {kind: Estimate.over_runs(each["value"].to_numpy()) for kind, each in shares.groupby("objective")}
    said = ", ".join(
        f"{kind} {100 * each.value:+.2f} ± {100 * each.stderr:.2f} % ({LIMITS[kind]:.0%} allowed)"
        for kind, each in found.items()
    )
    return convergence.Check("net sizes are −ELBO", all(abs(each.value) <= LIMITS[kind] for kind, each in found.items()), said)


def _said(plan: Plan, mine: Any) -> str:
    told = []
    pixels = mine[mine["quantity"] == "bits per pixel"]
    for kind, each in pixels.groupby("objective", sort=False):
        means = {name: Estimate.over_runs(found["value"].to_numpy()) for name, found in each.groupby("sampler", sort=False)}
        told.append(f"{kind}: " + ", ".join(f"{name} {value.value:.3f}" for name, value in means.items()))
    last = mine[(mine["objective"] == EMBEDDED) & (mine["beta"] == plan.ladder[-1])].groupby("quantity")["value"].mean()
    ideal = last["nats"] / (8 * math.log(2))
    sent, alone = (mine[(mine["objective"] == kind) & (mine["beta"] == plan.ladder[-1])] for kind in (EMBEDDED, ALONE))
    nats = [each[each["quantity"] == "nats"].sort_values("seed")["value"].to_numpy() for each in (sent, alone)]
    more = Estimate.over_runs(100 * (nats[0] / np.maximum(nats[1], 1e-9) - 1))
    return (
        f"Bits per pixel of test images, {'; '.join(told)}. An embedded stream of {len(plan.ladder)} rungs takes "
        f"{last['bytes']:.1f} bytes an image, ideally {ideal:.1f}: {more} % more than its last code alone."
    )
