"""Figures: records in, matplotlib `Axes` out. Nothing is computed here but positions on the page."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from nbvae import curves, estimators

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
    """Rate–distortion curves with rate on the horizontal axis, `y` ("distortion" or "mse") on the other.

    Bars are ± `errors` standard errors. The first series is annotated with its βs unless `annotate` is false.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4.2))[1]
    named = {"": series} if isinstance(series, curves.RDCurve) else series
    for index, (name, curve) in enumerate(named.items()):
        heights = curve.distortions if y == "distortion" else curve.mses
        spread = curve.distortion_stderrs if y == "distortion" else curve.mse_stderrs
        ax.errorbar(
            curve.rates,
            heights,
            xerr=errors * curve.rate_stderrs,
            yerr=errors * spread,
            label=name or None,
            color=_COLORS[index % 6],
            marker=_MARKERS[index % 6],
            markersize=4.5,
            linewidth=1.2,
            capsize=2,
        )
        if annotate and index == 0:
            _label_betas(ax, curve, heights)
    ax.set(xlabel="rate R (nats per example)", ylabel=_LABELS[y])
    if any(named):
        ax.legend()
    return ax


def _label_betas(ax: Axes, curve: curves.RDCurve, heights: Float[np.ndarray, " points"]) -> None:
    """β beside each point, left out where the label would lie on the one before (collapsed models share a point)."""
    width, height = (np.ptp(values) or 1.0 for values in (curve.rates, heights))
    last = (np.inf, np.inf)
    for beta, x, y in zip(curve.betas, curve.rates, heights, strict=True):
        if np.hypot((x - last[0]) / width, (y - last[1]) / height) > 0.04:
            ax.annotate(f"{beta:g}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
            last = (x, y)


def phase_diagram(
    curve: curves.RDCurve,
    entropy: float | None = None,
    collapsed: float | None = None,
    ax: Axes | None = None,
    **options,
) -> Axes:
    """`rd_plane` with the limits of Alemi et al. (2018): D + R >= `entropy`, and the distortion `collapsed` at rate zero.

    `entropy` (nats) is that of the data that the curve was measured on; None where it has none (densities).
    """
    ax = rd_plane(curve, ax=ax, **options)
    right, top = float(curve.rates.max()) * 1.06, float(curve.distortions.max()) * 1.12
    if entropy is not None:
        ends = np.array([0.0, max(entropy, right)])
        ax.plot(ends, entropy - ends, color="black", linewidth=1.5)
        ax.fill_between(ends, entropy - ends, -top, color="0.85", linewidth=0)
        ax.annotate("infeasible:\nD + R < H", (0, 0), xytext=(4, 5), textcoords="offset points", fontsize=9)
        ax.plot([0, entropy], [entropy, 0], linestyle="none", marker="*", markersize=11, color="black", clip_on=False)
        ax.annotate("auto-decoding limit", (0, entropy), xytext=(8, 6), textcoords="offset points", fontsize=9)
        ax.annotate("auto-encoding limit", (entropy, 0), xytext=(10, 8), textcoords="offset points", fontsize=9)
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
    """Chord slopes between neighbouring optima, each with the bracket of βs that it must fall in; log–log axes."""
    ax = ax or plt.subplots(figsize=(6.4, 3.6))[1]
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
    ax.legend()
    return ax


def image_grid(
    images: Float[Tensor, "rows columns ..."],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    limits: tuple[float, float] | None = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """A grid of images (rows, columns, channels, height, width) on one grey scale, `limits` = (black, white); None fits it.

    Vectors (rows, columns, n) are drawn as strips one pixel high.
    """
    array = images.detach().cpu().numpy()
    if array.ndim == 3:
        array = array[:, :, None, None, :]
    array = array.mean(2) if array.shape[2] != 3 else np.moveaxis(array, 2, -1)
    n_rows, n_columns, height, width = array.shape[:4]
    padded = np.pad(array, [(0, 0), (0, 0), (0, 1), (0, 1)] + [(0, 0)] * (array.ndim - 4), constant_values=np.nan)
    sheet = np.concatenate(list(np.concatenate(list(padded.swapaxes(0, 1)), axis=2)), axis=0)
    ax = ax or plt.subplots(figsize=(min(9.0, 0.62 * n_columns + 2.5), 0.62 * n_rows * height / width + 0.8))[1]
    low, high = limits or (float(np.nanmin(sheet)), float(np.nanmax(sheet)))
    ax.imshow(np.clip(sheet, low, high), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks((np.arange(n_columns) + 0.5) * (width + 1) - 1, columns or [""] * n_columns)
    ax.set_yticks((np.arange(n_rows) + 0.5) * (height + 1) - 1, rows or [""] * n_rows)
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    return ax


def four_terms(series: Mapping[str, estimators.Decomposition], errors: float = 2.0, limit: float | None = None) -> np.ndarray:
    """The rate of each named model as stacked bars ② + TC + DW beside its distortion; the two `Axes`.

    Bars of ± `errors` standard errors stand at the end of each term. Bars are cut at `limit` nats. The dotted line is log N,
    where ② ends.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 0.34 * len(series) + 1.2), sharey=True, width_ratios=[3, 2])
    rows = np.arange(len(series))
    ends = np.zeros(len(series))
    names = {
        "mutual_information": "mutual information ②",
        "total_correlation": "total correlation TC",
        "dimension_kl": "dimension-wise KL DW",
    }
    for (name, label), color, hatch in zip(names.items(), _COLORS, ("", "///", "..."), strict=False):
        widths = np.array([getattr(each, name) for each in series.values()])
        spread = errors * np.array([getattr(each, f"{name}_stderr") for each in series.values()])
        left.barh(rows, widths, left=ends, color=color, edgecolor="white", linewidth=0.5, hatch=hatch, label=label)
        ends = ends + widths
        left.errorbar(ends, rows, xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    distortion = [each.distortion for each in series.values()]
    spread = [errors * each.distortion_stderr for each in series.values()]
    right.errorbar(distortion, rows, xerr=spread, fmt="o", color=_COLORS[0], markersize=4.5, capsize=2)
    left.axvline(next(iter(series.values())).log_n, color="0.4", linestyle=":", linewidth=1.2)
    left.set(xlabel="nats per example", xlim=(0, limit or 1.05 * ends.max()), yticks=rows, yticklabels=list(series))
    left.invert_yaxis()
    right.set(xlabel="distortion D (nats per example)")
    right.grid(axis="y", linewidth=0.4)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return np.array([left, right])
