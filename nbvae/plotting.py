"""Figures: records in, matplotlib `Axes` out. Nothing is computed here but positions on the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from torch import Tensor

from nbvae import checks, curves, estimators
from nbvae.results import Estimate

# Okabe and Ito's colours, distinct to colour-blind readers; each series has a marker of its own besides.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LABELS = {"distortion": "distortion D (nats per example)", "mse": "MSE (sum over dimensions, per example)"}


def rd_plane(
    series: Mapping[str, curves.RDCurve] | curves.RDCurve,
    y: str = "distortion",
    annotate: bool = True,
    errors: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw rate–distortion curves with the rate, in nats per example, on the horizontal axis.

    - `series`: one curve, or several by the names that the legend gives them.
    - `y`: what is on the vertical axis: "distortion", in nats per example, or "mse", summed over dimensions, per example.
    - `annotate`: whether the points of the first curve are labelled with their β.
    - `errors`: half the length of an error bar in standard errors, >= 0. Errors that are not known have no bar.
    - `ax`: the `Axes` to draw into; None makes a figure.

    Returns the `Axes`. Raises `ValueError` for what is no curve, and for a curve without any MSE where `y` is "mse".

    >>> from matplotlib.figure import Figure
    >>> points = [curves.RDPoint(beta, rate=4 - beta, distortion=beta) for beta in (1.0, 2.0)]
    >>> rd_plane(curves.RDCurve(points), ax=Figure().subplots()).get_xlabel()
    'rate R (nats per example)'
    """
    named = {"": series} if isinstance(series, curves.RDCurve) else series
    _all("series", named, curves.RDCurve, "an RDCurve, or a dict of names and RDCurves")
    checks.choice("y", y, _LABELS)
    errors = checks.not_negative("errors", errors)
    for name, curve in named.items():
        if y == "mse" and np.isnan(curve.mses).all():
            raise ValueError(f"y must be 'distortion' for {f'the curve {name}' if name else 'this curve'}, which has no mse")
    ax = _axes(ax, (6.4, 4.2))
    for index, (name, curve) in enumerate(named.items()):
        heights = curve.distortions if y == "distortion" else curve.mses
        spread = curve.distortion_stderrs if y == "distortion" else curve.mse_stderrs
        ax.errorbar(
            curve.rates,
            heights,
            xerr=errors * curve.rate_stderrs,
            yerr=errors * spread,
            label=str(name) or None,
            color=_COLORS[index % 6],
            marker=_MARKERS[index % 6],
            markersize=4.5,
            linewidth=1.2,
            capsize=2,
        )
        if annotate and index == 0:
            _label_betas(ax, curve, heights)
    ax.set(xlabel="rate R (nats per example)", ylabel=_LABELS[y])
    if any(map(str, named)):
        ax.legend()
    return ax


def _label_betas(ax: Axes, curve: curves.RDCurve, heights: Float[np.ndarray, " points"]) -> None:
    """β beside each point, left out where the label would lie on the one before (collapsed models share a point)."""
    width, height = (np.nanmax(values) - np.nanmin(values) or 1.0 for values in (curve.rates, heights))
    last = (np.inf, np.inf)
    for beta, x, y in zip(curve.betas, curve.rates, heights, strict=True):
        if np.isfinite(y) and np.hypot((x - last[0]) / width, (y - last[1]) / height) > 0.04:
            ax.annotate(f"{beta:g}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
            last = (x, y)


def phase_diagram(
    curve: curves.RDCurve,
    entropy: float | None = None,
    collapsed: float | None = None,
    annotate: bool = True,
    errors: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a curve with the limits of Alemi et al. (2018): D + R >= `entropy`, and `collapsed`, the distortion at rate zero.

    - `curve`: the curve, with rate and distortion in nats per example.
    - `entropy`: the entropy, nats, >= 0, of the data that the curve was measured on; None where they have none (densities).
    - `collapsed`: the distortion, nats per example, of the best decoder that is told nothing; None leaves it out.
    - `annotate`, `errors`, `ax`: as for `rd_plane`.

    Returns the `Axes`. Raises `ValueError` for what is no curve or no finite number.

    >>> from matplotlib.figure import Figure
    >>> points = [curves.RDPoint(beta, rate=4 - beta, distortion=beta) for beta in (1.0, 2.0)]
    >>> ax = phase_diagram(curves.RDCurve(points), entropy=3.0, ax=Figure().subplots())
    >>> "auto-encoding limit" in [text.get_text() for text in ax.texts]
    True
    """
    if not isinstance(curve, curves.RDCurve):
        raise ValueError(f"curve must be an RDCurve, got {checks.short(curve)}")
    entropy = None if entropy is None else checks.not_negative("entropy", entropy)
    collapsed = None if collapsed is None else checks.between("collapsed", collapsed, -math.inf, math.inf)
    ax = rd_plane(curve, annotate=annotate, errors=errors, ax=ax)
    # A curve of collapsed models only has no width of its own.
    right, top = float(curve.rates.max()) * 1.06 or 1.0, float(curve.distortions.max()) * 1.12
    if entropy is not None:
        ends = np.array([0.0, max(entropy, right)])
        ax.plot(ends, entropy - ends, color="black", linewidth=1.5)
        ax.fill_between(ends, entropy - ends, -top, color="0.85", linewidth=0)
        ax.annotate("infeasible:\nD + R < H", (0, 0), xytext=(4, 5), textcoords="offset points", fontsize=9)
        # Whole stars on the axes, but none beyond them: the layout would make room for it.
        stars = [(x, y) for x, y in ((0.0, entropy), (entropy, 0.0)) if x <= right and y <= top]
        ax.plot(*np.reshape(stars, (-1, 2)).T, linestyle="none", marker="*", markersize=11, color="black", clip_on=False)
        ax.annotate("auto-decoding limit", (0, entropy), xytext=(8, 6), textcoords="offset points", fontsize=9)
        ax.annotate("auto-encoding limit", (entropy, 0), xytext=(10, 8), textcoords="offset points", fontsize=9)
        if top > 0:
            ax.set_ylim(0, top)
    if collapsed is not None:
        ax.axhline(collapsed, color="0.4", linestyle=":", linewidth=1.2)
        ax.annotate(
            "pixels without a code",
            (right, collapsed),
            xytext=(0, -3),
            textcoords="offset points",
            fontsize=9,
            ha="right",
            va="top",
        )
    ax.set_xlim(-0.02 * right, right)
    return ax


def envelope(check: "curves.Envelope", ax: Axes | None = None) -> Axes:
    """Draw the chord slopes between neighbouring optima, each with the bracket of βs that it must fall in; log–log axes.

    `check` is what `RDCurve.envelope` returns; slopes <= 0 or nan have no place on these axes. `ax`: where to draw, by
    default on new axes. Returns the `Axes`.

    >>> from matplotlib.figure import Figure
    >>> points = [curves.RDPoint(beta, rate=-np.log(beta), distortion=beta) for beta in (0.1, 0.2, 0.5)]
    >>> ax = envelope(curves.RDCurve(points).envelope(), ax=Figure().subplots())
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'slope (nats per nat)')
    """
    if not isinstance(check, curves.Envelope):
        raise ValueError(f"check must be an Envelope, as curve.envelope() gives, got {checks.short(check)}")
    ax = _axes(ax, (6.4, 3.6))
    middle = np.sqrt(check.lower * check.upper)
    ax.errorbar(
        middle,
        middle,
        yerr=[middle - check.lower, check.upper - middle],
        fmt="none",
        ecolor="0.6",
        elinewidth=6,
        label="bracket [β₁, β₂]",
    )
    ax.plot(middle, check.slopes, linestyle="none", marker="o", color=_COLORS[0], label="chord slope −ΔD/ΔR")
    ax.set(xscale="log", yscale="log", xlabel="√(β₁β₂) of the two neighbours", ylabel="slope (nats per nat)")
    for axis in (ax.xaxis, ax.yaxis):  # plain numbers, not so many that they overlap
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(ticker.NullFormatter())
    ax.legend()
    return ax


def image_grid(
    images: Float[Tensor, "rows columns ..."],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    limits: tuple[float, float] | None = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw a grid of images on one scale.

    - `images`: (rows, columns, channels, height, width), or vectors (rows, columns, n), drawn as strips of one row. Three
      channels are red, green and blue, a fourth is opacity; any other number of them is averaged into grey. Values that
      are nan are left blank.
    - `rows`, `columns`: a label for each row and each column, or none at all.
    - `limits`: (black, white), two values in the units of the images that become 0 and 1 in every channel, with what is
      beyond them cut off; None takes the smallest and the largest of the images.
    - `ax`: the `Axes` to draw into; None makes a figure.

    Returns the `Axes`. Raises `ValueError` for images of another shape, as many labels as do not fit, and limits that are
    not finite and increasing.

    >>> from matplotlib.figure import Figure
    >>> ax = image_grid(np.zeros((2, 5, 3, 8, 8)), rows=["x", "decoded"], ax=Figure().subplots())
    >>> ax.get_images()[0].get_array().shape, [label.get_text() for label in ax.get_yticklabels()]
    ((18, 45, 3), ['x', 'decoded'])
    """
    array = _pictures(images)
    n_rows, n_columns, height, width = array.shape[:4]
    labels = [_labels("rows", rows, n_rows), _labels("columns", columns, n_columns)]
    low, high = _limits(array, limits)
    padded = np.pad(array, [(0, 0), (0, 0), (0, 1), (0, 1)] + [(0, 0)] * (array.ndim - 4), constant_values=np.nan)
    sheet = np.concatenate(list(np.concatenate(list(padded.swapaxes(0, 1)), axis=2)), axis=0).clip(low, high)
    # matplotlib scales grey images only: colour it cuts at 0 and 1, whatever the limits.
    sheet = (sheet - low) / (high - low) if sheet.ndim == 3 else sheet
    strips = height == 1 < width  # of square pixels they would be too thin to see, and their labels would overlap
    row = max(0.62 * height / width, 0.2 * strips)
    ax = _axes(ax, (min(9.0, 0.62 * n_columns + 2.5), row * n_rows + 0.8))
    aspect = "auto" if strips else "equal"
    ax.imshow(sheet, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
    ax.set_yticks((np.arange(n_rows) + 0.5) * (height + 1) - 1, labels[0])
    ax.set_xticks((np.arange(n_columns) + 0.5) * (width + 1) - 1, labels[1])
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    return ax


def _pictures(images: Any) -> Float[np.ndarray, "rows columns height width ..."]:
    """The images in float64, a last axis of colours behind (height, width) where there are three or four channels."""
    allowed = "images must be a tensor of numbers (rows, columns, channels, height, width), or of vectors (rows, columns, n)"
    if isinstance(images, Tensor) and images.device.type != "meta" and not images.is_complex():
        images = images.detach().cpu().double().numpy()
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "buif":
        raise ValueError(
            f"{allowed}, got {checks.short(images)}{': torch.stack makes one of a list' * isinstance(images, list)}"
        )
    shape: tuple[int, ...] = images.shape
    if len(shape) not in (3, 5) or 0 in shape:
        raise ValueError(f"{allowed}, got {shape}{': images[None] is one row' if len(shape) == 4 else ''}")
    # As in `data.Dataset`: more than four channels of at most four columns are no picture.
    if len(shape) == 5 and shape[4] <= 4 < min(shape[2:4]):
        raise ValueError(f"{allowed}, but {shape} has its channels last: torch.movedim(images, -1, 2) puts them first")
    array = images.astype(np.float64)
    array = array[:, :, None, None] if len(shape) == 3 else array
    return np.moveaxis(array, 2, -1) if array.shape[2] in (3, 4) else array.mean(2)


def _labels(name: str, labels: Sequence[str], n: int) -> list[str]:
    given = [labels] if isinstance(labels, str) else list(labels)
    if len(given) not in (0, n):
        raise ValueError(f"{name} must have a label for each of the {n} {name}, or none at all; got {len(given)}")
    return list(map(str, given)) or [""] * n


def _limits(array: np.ndarray, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Black and white; those of images of one value have it in the middle."""
    if limits is None:
        finite = array[np.isfinite(array)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return (low, high) if low < high else (low - 0.5, high + 0.5)
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"limits must be two finite numbers, black < white, or None; got {checks.short(limits)}")
    return low, high


def four_terms(
    series: Mapping[str, estimators.Decomposition] | pd.DataFrame,
    errors: float = 2.0,
    limit: float | None = None,
    log_n: float | None = None,
) -> np.ndarray:
    """Draw the rate of each model as stacked bars I(x; z) + TC + DW, beside its distortion; all in nats per example.

    - `series`: what `estimators.decompose` returns for each model, by name; or a table with a row for each model and the
      columns distortion, mutual_information, total_correlation and dimension_kl of `Estimate`s.
    - `errors`: half the length of an error bar in standard errors, >= 0. The bars stand at the end of each term.
    - `limit`: the nats at which the bars are cut, > 0; None shows them whole.
    - `log_n`: log N, where I(x; z) ends, as a dotted line; None draws that of each decomposition, and none for a table.

    Returns the two `Axes`. Raises `ValueError` for what is no decomposition and no such table.

    >>> import torch
    >>> from nbvae import models
    >>> x = (torch.rand(20, 4) > 0.5).float()
    >>> left, right = four_terms({"untrained": estimators.decompose(models.VAE((4,), 2), x, n_samples=2)})
    >>> right.get_xlabel()
    'distortion D (nats per example)'
    >>> plt.close(left.figure)
    """
    names = {
        "mutual_information": "mutual information I(x; z)",
        "total_correlation": "total correlation TC",
        "dimension_kl": "dimension-wise KL DW",
    }
    limits = {checks.positive("log_n", log_n)} if log_n is not None else set()
    if isinstance(series, pd.DataFrame):
        rows = {str(name): row.to_dict() for name, row in series.iterrows()}
        if not rows or any(not isinstance(row.get(name), Estimate) for row in rows.values() for name in ("distortion", *names)):
            raise ValueError(f"series must be a table with rows and columns of Estimates: distortion, {', '.join(names)}")
    else:
        _all("series", series, estimators.Decomposition, "a dict of names and Decompositions")
        rows = {str(name): each.estimates() for name, each in series.items()}
        limits = limits or {each.log_n for each in series.values()}
    errors = checks.not_negative("errors", errors)
    limit = None if limit is None else checks.positive("limit", limit)
    size = (8, 0.34 * len(rows) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=[3, 2], layout="constrained")
    heights, ends = np.arange(len(rows)), np.zeros(len(rows))
    for (name, label), color, hatch in zip(names.items(), _COLORS, ("", "///", "..."), strict=False):
        widths = np.array([row[name].value for row in rows.values()])
        spread = errors * np.array([row[name].stderr for row in rows.values()])
        left.barh(heights, widths, left=ends, color=color, edgecolor="white", linewidth=0.5, hatch=hatch, label=label)
        ends = ends + widths
        left.errorbar(ends, heights, xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    distortion = [row["distortion"].value for row in rows.values()]
    spread = [errors * row["distortion"].stderr for row in rows.values()]
    right.errorbar(distortion, heights, xerr=spread, fmt="o", color=_COLORS[0], markersize=4.5, capsize=2)
    for each in limits:
        left.axvline(each, color="0.4", linestyle=":", linewidth=1.2)
    # Where all models are collapsed, the bars have no length: then the line is what there is to see.
    longest = ends.max() if ends.max() > 0 else max(limits, default=1.0)
    left.set(xlabel="nats per example", xlim=(0, limit or 1.05 * longest), yticks=heights, yticklabels=list(rows))
    left.invert_yaxis()
    right.set(xlabel="distortion D (nats per example)")
    right.grid(axis="y", linewidth=0.4)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return np.array([left, right])


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """`ax`, or that of a new figure."""
    if not isinstance(ax, Axes | None):
        raise ValueError(f"ax must be a matplotlib Axes, or None for a new figure; got {checks.short(ax)}")
    return plt.subplots(figsize=figsize)[1] if ax is None else ax


def _all(name: str, values: Any, kind: type, allowed: str) -> None:
    """Raise `ValueError` unless `values` is a mapping with values of one kind, at least one of them."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{name} must be {allowed}, got {checks.short(values)}")
    for key, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {allowed}, got {checks.short(value)} under {checks.short(key)}")
