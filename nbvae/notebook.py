"""What chapters need: parameters checked, errors in one line, SVG figures, numbers for the text, tables, a slider."""

import ast
import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from nbvae import checks
from nbvae.results import Estimate


def begin(cells: Sequence[str]) -> None:
    """Open a chapter: `notebook.begin(In)` in the cell after the parameters, where they are also validated by use.

    - Parameters that papermill injected but the notebook does not have raise `ValueError`, with the names it has.
    - An error in this cell is shown as one line. Later cells show whole tracebacks.
    - Figures become SVG with stable identifiers, so that equal results give equal bytes.
    - torch computes in one thread, unless OMP_NUM_THREADS says otherwise: the models are small, and on a machine that is busy
      several threads wait for each other, for many times as long.

    `cells` holds the source of the cells run so far, as IPython's `In` does.

    >>> import matplotlib
    >>> with matplotlib.rc_context():  # here alone, so that the style ends with the example
    ...     begin(["epochs: int = 60", "notebook.begin(In)"])
    """
    import matplotlib as mpl
    import torch
    from IPython.core.getipython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    shell = get_ipython()
    if shell is not None:
        set_matplotlib_formats("svg")
        shell.InteractiveTB.set_mode(mode="Minimal")
        shell.events.register("post_run_cell", _whole_tracebacks)
    mpl.rcParams.update(
        {
            "svg.hashsalt": "nbvae",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    check_parameters(cells)


def glue(name: str, value: object, spec: str = "") -> None:
    """Keep a value for the text, where {glue:text}`name` stands for it; nothing is shown.

    - `name`: its name in the text, without a colon.
    - `value`: a number, which the text may format, {glue:text}`name:.2f`; an `Estimate`, which stands there as "-0.32 ± 0.02",
      and whose numbers alone are `name.value` and `name.stderr`; a string; whatever a notebook shows, {glue:}`name`; or a
      mapping, whose entries are kept as `name.key` each.
    - `spec`: the format of an estimate, which the text cannot give: "+" has the sign, ".1f" one decimal in both parts.

    Raises `ValueError` for another name.

    >>> glue("regret", Estimate(-0.3234, 0.0213), "+")  # {glue:text}`regret` is "-0.32 ± 0.02"
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ValueError(f"name must be a string without a colon, which begins a format in the text; got {checks.short(name)}")
    if isinstance(value, Mapping):
        for key, each in value.items():
            glue(f"{name}.{key}", each, spec)
        return
    if isinstance(value, Estimate):
        glue(name, {"value": value.value, "stderr": value.stderr})
        value = format(value, spec)
    elif getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        value = value.item()  # type: ignore[attr-defined]
    _record(name, value)


def _record(name: str, value: object) -> None:
    """What myst_nb.glue(name, value, display=False) writes into the notebook, without the seconds of importing nbformat."""
    from IPython.core.formatters import format_display_data
    from IPython.display import display

    prefix = "application/papermill.record/"
    data, metadata = format_display_data(value)
    metadata["scrapbook"] = {"name": name, "mime_prefix": prefix}
    display({prefix + kind: each for kind, each in data.items()}, raw=True, metadata=metadata)


@dataclass(frozen=True)
class Table:
    """A table as HTML, and as Markdown where that is not shown."""

    html: str  # where a browser shows it
    markdown: str  # elsewhere

    def _repr_html_(self) -> str:
        return self.html

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown


def table(data: pd.DataFrame | pd.Series, caption: str = "", spec: str | Mapping[Any, str] = "") -> Table:
    """A frame as a table that can be read on a phone, in the dark, by ear and without a network.

    - `data`: a frame of strings, numbers and `Estimate`s, or a series of them, as `results.over_seeds` returns it. The index
      heads the rows; where it only counts them, the first column does. What is missing is a dash.
    - `caption`: what the table shows, in words, with units; it is also what a screen reader announces.
    - `spec`: how numbers and estimates are formatted, as in `format`; or a mapping from columns to that.

    Raises `ValueError` for anything else than a frame with rows and columns, and for a caption or a format that is none.

    >>> frame = pd.DataFrame({"film": [Estimate(-0.3234, 0.0213)], "gates": [Estimate(1.25, 0.4)]}, index=["regret"])
    >>> table(frame, "Mean regret, nats.", "+")
    Mean regret, nats.
    <BLANKLINE>
    |  | film | gates |
    |---|---:|---:|
    | regret | -0.32 ± 0.02 | +1.2 ± 0.4 |
    """
    if isinstance(data, pd.Series):
        data = data.to_frame("mean ± standard error" if data.name is None else data.name)
    if not isinstance(data, pd.DataFrame) or not data.size:
        raise ValueError(f"a table is made of a frame with rows and columns, got {checks.short(data)}")
    if not isinstance(caption, str):
        raise ValueError(f"caption must be a string that says what the table shows, got {checks.short(caption)}")
    if isinstance(data.index, pd.RangeIndex) and data.index.name is None and data.shape[1] > 1:
        first = pd.Index(data.iloc[:, 0], name=data.columns[0])  # by its place: two columns may have one name
        data = data.iloc[:, 1:].set_axis(first)
    specs = spec if isinstance(spec, Mapping) else dict.fromkeys(data.columns, spec)
    heads = [_label(name, None) for name in data.index.names]
    labels = [_label(name, data.columns.name) for name in data.columns]
    rows = []
    for key, cells in zip(data.index, data.itertuples(index=False, name=None), strict=True):
        names = [_label(part, None) for part in (key if isinstance(data.index, pd.MultiIndex) else (key,))]
        texts = [_cell(cell, specs.get(column, "")) for column, cell in zip(data.columns, cells, strict=True)]
        rows.append((names, texts))
    # Columns with words in them start at the left, numbers end at the right, their digits of one width.
    words = [any(isinstance(cell, str) for cell in data.iloc[:, i]) for i in range(len(labels))]
    sides = ["left" if each else "right" for each in words]
    return Table(_html(caption, heads, labels, sides, rows), _markdown(caption, heads, labels, sides, rows))


def _label(value: Any, axis: object) -> str:
    """A row's or a column's name: β where a frame has beta, and "β = 0.1" for a number on an axis with a name."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(_label(each, None) for each in value)
    if isinstance(value, Real):
        text = f"{value:g}" if not isinstance(value, Integral) else str(value)
        return f"{_label(axis, None)} = {text}" if axis is not None else text
    return "β" if value == "beta" else str(value)


def _cell(value: Any, spec: str) -> str:
    try:
        return " ".join(_formatted(value, spec).split("\n"))
    except ValueError:
        raise ValueError(f"spec must be a format of numbers, as '+' or '.2f' is; got {spec!r}") from None


def _formatted(value: Any, spec: str) -> str:
    if isinstance(value, Estimate):
        return format(value, spec)
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    return str(value) if isinstance(value, int) and spec in ("", "-") else format(Estimate(float(value)), spec)


def _html(caption: str, heads: list[str], labels: list[str], sides: list[str], rows: list[tuple[list[str], list[str]]]) -> str:
    text = html.escape
    styles = {"left": "text-align:left", "right": "text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"}
    top = "".join(f'<th scope="col" style="text-align:left">{text(name)}</th>' if name else "<td></td>" for name in heads)
    top += "".join(
        f'<th scope="col" style="text-align:{side}">{text(name)}</th>' for name, side in zip(labels, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row" style="text-align:left">{text(name)}</th>' for name in names)
        + "".join(f'<td style="{styles[side]}">{text(cell)}</td>' for cell, side in zip(cells, sides, strict=True))
        + "</tr>"
        for names, cells in rows
    )
    title = f'<caption style="caption-side:top">{text(caption)}</caption>' if caption else ""
    # The box scrolls, by the keyboard too, and the table stays one for those who hear it.
    return (
        f'<div role="region" aria-label="{text(caption) or "table"}" tabindex="0" style="overflow-x:auto">'
        f'<table class="table" style="display:table;width:auto">{title}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _markdown(
    caption: str, heads: list[str], labels: list[str], sides: list[str], rows: list[tuple[list[str], list[str]]]
) -> str:
    lines = [[*heads, *labels], *([*names, *cells] for names, cells in rows)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    rule = "|---" * len(heads) + "".join("|---:" if side == "right" else "|---" for side in sides) + "|"
    return "\n".join([*([caption, ""] if caption else []), text[0], rule, *text[1:]])


def slider(frames: Mapping[str, Any], label: str, describe: str) -> Any:
    """matplotlib figures under a slider that needs no kernel and no network; they are closed.

    - `frames`: the figure for each value of what the slider moves, in its order; at least one.
    - `label`: the name of what it moves.
    - `describe`: what the figures show, for those who cannot see them; label and value are put behind it.

    Returns what a notebook shows as HTML, the pictures inside it. Raises `ValueError` without figures.

    >>> import matplotlib.pyplot as plt
    >>> page = slider({"0.1": plt.figure(), "1": plt.figure()}, "β", "An empty page at")
    >>> page.data.count("<img"), "An empty page at β = 0.1." in page.data
    (2, True)
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML

    if not isinstance(frames, Mapping) or not frames:
        raise ValueError(f"frames must be a figure for each value, at least one, got {checks.short(frames)}")
    frames = {str(value): figure for value, figure in frames.items()}
    pictures = []
    for value, figure in frames.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        source = base64.b64encode(buffer.getvalue()).decode()
        alt = html.escape(f"{describe} {label} = {value}.", quote=True)
        hidden = " hidden" if pictures else ""
        pictures.append(f'<img src="data:image/png;base64,{source}" alt="{alt}" style="max-width:100%"{hidden}>')
    values = html.escape(json.dumps(list(frames)), quote=True)
    move = (
        "const f=this.closest('figure'),v=JSON.parse(this.dataset.values);"
        "f.querySelectorAll('img').forEach((e,i)=>e.hidden=i!=this.value);"
        "f.querySelector('output').value=v[this.value];this.setAttribute('aria-valuetext',v[this.value])"
    )
    first = html.escape(next(iter(frames)))
    return HTML(
        f'<figure style="margin:0"><label>{html.escape(label)} = <output>{first}</output><br>'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" style="width:min(100%,28em)" aria-valuetext="{first}" '
        f'data-values="{values}" oninput="{html.escape(move, quote=True)}"></label>{"".join(pictures)}</figure>'
    )


@dataclass(frozen=True)
class Live:
    """An element that runs in the built page, as HTML; its text alternative where that is not shown."""

    html: str  # the element and its arrays
    text: str  # the alternative

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


LIVE = ("draw", "water", "hole", "arrives")
_KINDS = ("int8", "uint8", "float32")
# Sphinx says on each page where the root of the book is.
_LOADER = (
    "(() => { const s = document.createElement('script'); "
    "s.src = (document.documentElement.dataset.content_root || '../../') + '_static/live.js'; document.head.append(s) })()"
)


def live(name: str, text: str, arrays: Mapping[str, np.ndarray], size: str = "full", **settings: Any) -> Live:
    """An element that computes in the page itself, without a kernel and without a network.

    - `name`: which one: "draw" encodes and decodes what a reader draws, at the β of a slider; "water" has the eigenvalues of
      data sets and a water level to drag; "hole" decodes the point that a reader chooses among the codes of two latents, and
      draws of the prior; "arrives" shows images that sharpen as the codes of a ladder arrive.
    - `text`: what is shown in its place where it does not run, one sentence or more.
    - `arrays`: what it computes with, of the types int8, uint8 and float32, by name; they stand in the page.
    - `size`: "full", or "small" for the part of it that comes first, which only "draw" has.
    - `settings`: what else it is told, as JSON. For "draw": `low`, `high` and `beta`, the range of β and where the slider
      begins; `side`, of an image in pixels; `curve`, a list of {"beta": …, "rate": …, "distortion": …}. For "water":
      `handles`, "level" or "both" for β and σ. For "hole" and "arrives" arrays and settings are those of `in_page` of the
      studies `hole` and `arrives`; `beta` is where the slider of "hole" begins.

    The program is `book/_static/live.js`, which the page loads. Raises `ValueError` for another name, size or type.

    >>> element = live("draw", "A model in the page.", {"encoder.layers.0.bias": np.zeros(4, "float32")}, side=28)
    >>> element
    A model in the page.
    """
    checks.choice("live element", name, LIVE)
    checks.choice("size", size, ("full", "small"))
    packed = {}
    for key, value in arrays.items():
        checks.choice(f"the type of {key}", str(value.dtype), _KINDS)
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        packed[key] = {"type": str(value.dtype), "shape": list(value.shape), "data": content}
    data = json.dumps({"weights": packed, **settings}, ensure_ascii=False).replace("<", "\\u003c")
    return Live(
        f'<div data-live="{name}" data-size="{size}"><p>{html.escape(text)}</p><script type="application/json">{data}</script>'
        f"</div><script>{_LOADER}</script>",
        text,
    )


def check_parameters(cells: Sequence[str]) -> None:
    r"""Raise `ValueError` if the cell that papermill injected sets a name that no cell before it sets.

    `cells` holds the source of the cells run so far, as IPython's `In` does.

    >>> check_parameters(["epochs = 60", "# Parameters\nepohcs = 2"])
    Traceback (most recent call last):
    ValueError: unknown parameter epohcs; this notebook has: epochs
    """
    declared: set[str] = set()
    for source in cells:
        names = _assigned(source)
        if source.startswith("# Parameters"):  # papermill's mark on the cell that it injects
            unknown = sorted(names - declared)
            if unknown:
                raise ValueError(f"unknown parameter {', '.join(unknown)}; this notebook has: {', '.join(sorted(declared))}")
        declared |= names


def _whole_tracebacks(_result: object) -> None:
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.InteractiveTB.set_mode(mode="Context")
        shell.events.unregister("post_run_cell", _whole_tracebacks)


def _assigned(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # magics
        return set()
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
