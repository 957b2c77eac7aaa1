"""Draw the picture of the landing page and the README from the record of the study of curves: `python book/picture.py`."""

import hashlib
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import studies  # noqa: E402
from nbvae import curves, plotting  # noqa: E402
from studies.curve import drawn_curve  # noqa: E402

PICTURE = ROOT / "book" / "_static" / "rd_curve.svg"


def recorded() -> dict[str, curves.RDCurve]:
    """The curves of the record, by the names that the legend gives them."""
    record = studies.load("curve", "digits")
    splits = {"new images": "test", "training images": "train"}
    return {name: drawn_curve(record.frame, record.plan["kinds"][0], split) for name, split in splits.items()}


def mark(series: dict[str, curves.RDCurve]) -> str:
    """A hash of the numbers that are drawn, which the picture carries."""
    text = repr(
        [(name, *(round(x, 6) for x in (at.beta, at.rate, at.distortion))) for name, each in series.items() for at in each]
    )
    return f"points {hashlib.sha256(text.encode()).hexdigest()}"


def draw(path: Path = PICTURE) -> None:
    """Write the picture."""
    series = recorded()
    with mpl.rc_context({"svg.hashsalt": "picture", "figure.constrained_layout.use": True}):
        figure, ax = plt.subplots(figsize=(6.4, 4.2))
        plotting.rd_plane(series, ax=ax)
        figure.savefig(path, metadata={"Date": None, "Description": mark(series)})
        plt.close(figure)


if __name__ == "__main__":
    draw()
