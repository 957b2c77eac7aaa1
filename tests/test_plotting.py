"""Figures show what they are given, and nothing is cut off."""

import warnings

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from nbvae import curves, estimators, models, plotting


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
