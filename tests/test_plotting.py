"""Figures show what they are given, and nothing is cut off."""

import warnings

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import curves, estimators, models, plotting
from nbvae.results import Estimate


@pytest.fixture(autouse=True)
def _strict():
    """As in a chapter: constrained layout, whose complaints are errors."""
    with mpl.rc_context({"figure.constrained_layout.use": True}), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        plt.gcf().canvas.draw()
    plt.close("all")


@pytest.fixture
def curve():
    values = [(0.1, 9.0, 2.0), (1.0, 4.0, 6.0), (5.0, 0.0, 12.0), (7.0, 0.0, 12.0)]
    return curves.RDCurve([curves.RDPoint(b, r, d, mse=d / 2, rate_stderr=0.1, distortion_stderr=0.2) for b, r, d in values])


def test_rd_plane_draws_each_series_with_units_and_error_bars(curve):
    ax = plotting.rd_plane({"a": curve, "b": curve}, errors=3)
    assert "nats" in ax.get_xlabel()
    assert "nats" in ax.get_ylabel()
    line, _, bars = ax.containers[0]
    np.testing.assert_allclose(line.get_xydata(), np.stack([curve.rates, curve.distortions], -1))
    np.testing.assert_allclose(bars[0].get_segments()[0][:, 0], [9.0 - 0.3, 9.0 + 0.3])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_labels_of_points_on_one_spot_are_left_out(curve):
    assert [text.get_text() for text in plotting.rd_plane(curve).texts] == ["0.1", "1", "5"]


def test_mse_is_drawn_as_a_sum(curve):
    ax = plotting.rd_plane(curve, y="mse")
    assert "sum over dimensions" in ax.get_ylabel()
    np.testing.assert_allclose(ax.containers[0][0].get_ydata(), curve.mses)


@pytest.mark.parametrize("limits", [{}, {"entropy": 3.0}, {"collapsed": 11.0}, {"entropy": 3.0, "collapsed": 11.0}])
def test_phase_diagram_names_the_limits_that_it_is_given(curve, limits):
    texts = {text.get_text() for text in plotting.phase_diagram(curve, **limits).texts}
    assert ("auto-decoding limit" in texts) == ("entropy" in limits)
    assert ("pixels without a code" in texts) == ("collapsed" in limits)


@pytest.mark.parametrize(("scale", "ends"), [(1.0, 2), (0.01, 0), (100.0, 2)])
def test_limits_beyond_the_axes_leave_the_axes_their_size(curve, scale, ends):
    """Curves of hardly any rate, of data whose entropy is far beyond it: a mark out there would take all the room."""
    entropy = 0.5 * min(curve.rates.max(), curve.distortions.max())
    scaled = [curves.RDPoint(point.beta, scale * point.rate, scale * point.distortion) for point in curve]
    ax = plotting.phase_diagram(curves.RDCurve(scaled), entropy=entropy)
    ax.figure.canvas.draw()
    assert ax.get_position().width > 0.5
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "*") == ends


def test_envelope_draws_slopes_in_their_brackets(curve):
    check = curve.envelope()
    ax = plotting.envelope(check)
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata(), check.slopes)


@pytest.mark.parametrize("shape", [(1, 4, 5), (6,), (3, 4, 4)])
@pytest.mark.parametrize("columns", [1, 3, 12])
def test_image_grid_puts_every_image_in_its_place(shape, columns):
    images = torch.rand(2, columns, *shape)
    ax = plotting.image_grid(images, rows=["reconstruction", "prior sample"], columns=["β"] * columns)
    sheet = ax.get_images()[0].get_array()
    height, width = (1, shape[0]) if len(shape) == 1 else shape[1:]
    last = sheet[height + 1 : 2 * height + 1, (columns - 1) * (width + 1) : columns * (width + 1) - 1]
    wanted = images[1, -1].reshape(height, width) if shape[0] != 3 else images[1, -1].movedim(0, -1)
    np.testing.assert_allclose(np.asarray(last).reshape(wanted.shape), wanted)


def sheet_of(ax) -> np.ndarray:
    return np.ma.filled(ax.get_images()[0].get_array(), np.nan)


def pixel(ax, row, column) -> list[int]:
    """The colour on the page, 0 to 255, of the sheet's pixel."""
    ax.figure.canvas.draw()
    across, up = ax.transData.transform((column, row))
    return np.asarray(ax.figure.canvas.buffer_rgba())[::-1][int(up), int(across)].tolist()[:3]


SCALES = {
    "[0, 1]": (1.0, 0.0),
    "[-1, 1]": (2.0, -1.0),
    "standardised": (3.4, -1.7),
    "0..255": (255.0, 0.0),
    "tiny": (1e-3, 5.0),
}


@pytest.mark.parametrize(("scale", "shift"), SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_grid_is_the_same_picture_in_whatever_units_its_images_are(channels, scale, shift, caplog, capfd):
    images = torch.rand(2, 3, channels, 4, 5, dtype=torch.float64)
    images[0, 0, :, 0, 0], images[1, 2, :, 3, 4] = 0, 1
    for limits in (None, (shift, shift + scale)):
        wanted, ax = plotting.image_grid(images), plotting.image_grid(scale * images + shift, limits=limits)
        shown = [
            each.get_images()[0].to_rgba(each.get_images()[0].get_array(), norm=channels not in (3, 4)) for each in (wanted, ax)
        ]
        # The colour map has 256 greys.
        np.testing.assert_allclose(shown[1], shown[0], atol=1e-9 if channels in (3, 4) else 1 / 254)
        assert pixel(ax, 0, 0) == ([255] * 3 if channels == 4 else [0] * 3)  # a fourth channel is opacity
        assert pixel(ax, 8, 16) == [255] * 3
        for each in (wanted, ax):
            plt.close(each.figure)
    assert caplog.records == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_cut_at_the_limits_and_not_before(channels, caplog):
    images = torch.linspace(-3, 5, 2 * channels * 25).reshape(1, 2, channels, 5, 5)
    sheet = sheet_of(plotting.image_grid(images, limits=(-1, 3)))
    wanted = ((images + 1) / 4).clamp(0, 1)
    np.testing.assert_allclose(sheet[:5, 6:11], wanted[0, 1].movedim(0, -1), atol=1e-7)
    assert np.isnan(sheet[5]).all()
    assert np.isnan(sheet[:, 5]).all()
    assert caplog.records == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_between_the_images_and_where_they_are_nan_the_background_shows(channels):
    images = torch.full((2, 2, channels, 3, 3), 0.25)
    images[1, 1, -1, 1, 1], images[0, 0, 0, 0, 0] = np.nan, np.inf
    for limits in (None, (0.0, 1.0)):
        figure, ax = plt.subplots(facecolor="red")
        ax.set_facecolor("red")
        plotting.image_grid(images, limits=limits, ax=ax)
        for row, column in [(3, 1), (1, 3), (3, 3), (5, 5)]:
            assert pixel(ax, row, column) == [255, 0, 0]
        assert pixel(ax, 6, 6) != [255, 0, 0]
        plt.close(figure)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("value", [-7.0, 0.0, 1.0, np.nan])
def test_images_of_one_value_are_in_the_middle_of_their_own_scale(channels, value):
    ax = plotting.image_grid(torch.full((1, 2, channels, 3, 3), value), limits=None)
    assert pixel(ax, 1, 1) == ([255] * 3 if np.isnan(value) else pytest.approx([127.5] * 3, abs=1))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_a_grid_takes_images_of_any_real_type_and_from_numpy(kind):
    images = (torch.rand(2, 2, 1, 3, 3) > 0.5).to(kind)
    wanted = sheet_of(plotting.image_grid(images.double()))
    np.testing.assert_array_equal(sheet_of(plotting.image_grid(images)), wanted)
    flipped = images.double().flip(-1).numpy()[..., ::-1]
    np.testing.assert_array_equal(sheet_of(plotting.image_grid(flipped)), wanted)
    needing = images.double().requires_grad_()
    np.testing.assert_array_equal(sheet_of(plotting.image_grid(needing)), wanted)


TERMS = pd.DataFrame(
    {
        "distortion": [Estimate(9.0, 0.1), Estimate(8.0, 0.1)],
        "mutual_information": [Estimate(3.0, 0.1), Estimate(4.0, 0.1)],
        "total_correlation": [Estimate(0.5, 0.1), Estimate(0.25, 0.1)],
        "dimension_kl": [Estimate(0.1, 0.01), Estimate(0.2, 0.01)],
    },
    index=["VAE", "β = 2"],
)
IMAGES = torch.rand(2, 3, 1, 6, 6)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda c: plotting.image_grid(IMAGES[0]), r"got \(3, 1, 6, 6\): images\[None\] is one row"),
        (lambda c: plotting.image_grid(IMAGES[0, 0, 0]), r"vectors \(rows, columns, n\), got \(6, 6\)"),
        (lambda c: plotting.image_grid(IMAGES[:, :0]), r"got \(2, 0, 1, 6, 6\)"),
        (lambda c: plotting.image_grid(IMAGES.movedim(2, -1)), "channels last"),
        (lambda c: plotting.image_grid(IMAGES + 0j), "images must be a tensor of numbers"),
        (lambda c: plotting.image_grid(IMAGES.to("meta")), "images must be a tensor of numbers"),
        (lambda c: plotting.image_grid(list(IMAGES)), "got a list: torch.stack makes one of a list"),
        (lambda c: plotting.image_grid(np.array(["x"])), "images must be a tensor of numbers"),
        (lambda c: plotting.image_grid(None), "images must be a tensor of numbers .* got None"),
        (lambda c: plotting.image_grid("digits"), "images must be a tensor of numbers .* got 'digits'"),
        (lambda c: plotting.image_grid(c), "images must be a tensor of numbers"),
        (lambda c: plotting.image_grid(IMAGES, rows=["x"]), "rows must have a label for each of the 2 rows, .* got 1"),
        (lambda c: plotting.image_grid(IMAGES, columns="abcd"), "columns must have a label for each of the 3 columns"),
        (lambda c: plotting.image_grid(IMAGES, columns=np.ones(4)), "columns must have .* got 4"),
        (lambda c: plotting.image_grid(IMAGES, limits=(1, 0)), "limits must be two finite numbers, black < white"),
        (lambda c: plotting.image_grid(IMAGES, limits=(1, 1)), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, limits=(0, np.nan)), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, limits=(0, np.inf)), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, limits=1), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, limits="fit"), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, limits=(0, 1, 2)), "limits must be"),
        (lambda c: plotting.image_grid(IMAGES, ax=np.array([None])), "ax must be a matplotlib Axes"),
        (lambda c: plotting.rd_plane([c, c]), "series must be an RDCurve, or a dict of names and RDCurves"),
        (lambda c: plotting.rd_plane({}), "series must be"),
        (lambda c: plotting.rd_plane(None), "series must be .* got None"),
        (lambda c: plotting.rd_plane({"a": c, "b": None}), "series must be .* got None under 'b'"),
        (lambda c: plotting.rd_plane({"a": list(c)}), "series must be .* under 'a'"),
        (lambda c: plotting.rd_plane(c, y="rate"), "y must be one of distortion, mse; got 'rate'"),
        (lambda c: plotting.rd_plane(c, errors=-1), "errors must be a finite number >= 0"),
        (lambda c: plotting.rd_plane(c, errors=np.nan), "errors must be a finite number >= 0"),
        (lambda c: plotting.rd_plane(c, ax=plt.figure()), "ax must be a matplotlib Axes, .* got "),
        (
            lambda c: plotting.rd_plane(curves.RDCurve([curves.RDPoint(1.0, 2.0, 3.0)]), y="mse"),
            "y must be 'distortion' for this curve, which has no mse",
        ),
        (lambda c: plotting.phase_diagram({"a": c}), "curve must be an RDCurve"),
        (lambda c: plotting.phase_diagram(c, entropy=-1), "entropy must be a finite number >= 0"),
        (lambda c: plotting.phase_diagram(c, entropy="log 2"), "entropy must be a finite number >= 0"),
        (lambda c: plotting.phase_diagram(c, collapsed=np.nan), "collapsed must be a finite number"),
        (lambda c: plotting.envelope(c), r"check must be an Envelope, as curve.envelope\(\) gives"),
        (lambda c: plotting.four_terms({}), "series must be a dict of names and Decompositions"),
        (lambda c: plotting.four_terms({"a": c}), "series must be a dict of names and Decompositions, .* under 'a'"),
        (lambda c: plotting.four_terms([1]), "series must be"),
        (
            lambda c: plotting.four_terms(pd.DataFrame({"distortion": [1.0]})),
            "series must be a table with rows",
        ),
        (lambda c: plotting.four_terms(pd.DataFrame()), "series must be a table"),
        (lambda c: plotting.four_terms(TERMS, log_n=0), "log_n must be a finite number > 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line_before_a_figure_is_made(draw, message, curve):
    before = plt.get_fignums()
    one_line(lambda: draw(curve), match=message)
    assert len(plt.get_fignums()) <= len(before) + 1  # the one that a case gives itself


def test_curves_that_are_partly_known_or_collapsed_are_drawn_without_a_warning():
    points = [curves.RDPoint(beta, 0.0, 12.0, mse=mse) for beta, mse in ((1.0, np.nan), (2.0, 3.0), (4.0, np.nan))]
    flat = curves.RDCurve(points)
    assert [text.get_text() for text in plotting.rd_plane(flat, y="mse").texts] == ["2"]
    left, right = plotting.phase_diagram(flat, collapsed=12.0).get_xlim()
    assert left <= 0 < right
    assert plotting.rd_plane({0: flat, 1: flat}).get_legend().get_texts()[0].get_text() == "0"
    densities = curves.RDCurve([curves.RDPoint(beta, 2.0 - beta, -9.0) for beta in (0.5, 1.0)])
    plotting.phase_diagram(densities, collapsed=-8.0, entropy=0.0)


def test_bars_of_collapsed_models_are_on_a_scale_and_every_log_n_has_its_line():
    made = {}
    for n in (20, 50):
        model = models.VAE((3,), 2, likelihood="gaussian", hidden=(4,))
        with torch.no_grad():
            for weight in model.encoder.parameters():
                weight.zero_()
        made[f"{n}"] = estimators.decompose(model, torch.randn(n, 3), n_samples=2)
    left, _ = plotting.four_terms(made)
    assert {line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"} == {np.log(20), np.log(50)}
    assert left.get_xlim()[1] > 0


def test_bars_of_a_table_are_those_of_its_estimates_and_log_n_is_drawn_where_it_is_given():
    left, right = plotting.four_terms(TERMS, log_n=7.0)
    bars = [patch for container in left.containers if hasattr(container, "patches") for patch in container.patches]
    assert [bar.get_width() for bar in bars] == pytest.approx([3.0, 4.0, 0.5, 0.25, 0.1, 0.2])
    assert [label.get_text() for label in left.get_yticklabels()] == ["VAE", "β = 2"]
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"] == [7.0]
    assert right.lines[0].get_xdata().tolist() == [9.0, 8.0]
    assert not [line for line in plotting.four_terms(TERMS)[0].lines if line.get_linestyle() == ":"]


def test_bars_of_the_terms_end_where_the_terms_add_up_to():
    x = torch.randn(60, 1, 2, 3)
    made = {}
    for name in ("one", "two"):
        torch.manual_seed(len(made))
        model = models.VAE((1, 2, 3), 2, likelihood="gaussian")
        made[name] = estimators.decompose(model, x, n_samples=5)
    left, right = plotting.four_terms(made)
    ends = [container.errorbar for container in left.containers if hasattr(container, "errorbar")]
    bars = [patch for container in left.containers if hasattr(container, "patches") for patch in container.patches]
    assert len(bars) == 6
    assert len(ends) in (0, 3)
    for row, found in enumerate(made.values()):
        last = bars[4 + row]
        total = found.mutual_information + found.total_correlation + found.dimension_kl
        assert last.get_x() + last.get_width() == pytest.approx(total)
        assert last.get_y() + last.get_height() / 2 == pytest.approx(row)
    assert [label.get_text() for label in left.get_yticklabels()] == ["one", "two"]
    assert right.lines[0].get_xdata().tolist() == pytest.approx([found.distortion for found in made.values()])
