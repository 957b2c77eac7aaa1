"""The page of records says what the records say, and its files have all their rows."""

import io

import pandas as pd
import pytest

pytest.importorskip("sphinx")

import records
import shared
import studies
from studies import record


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("book")
    (root / "book").mkdir()
    (root / "book" / "recorded").symlink_to(record.RECORDED)
    records.write(root, shared.replace_text)
    return root / "book" / "executed"


def test_every_study_is_there_with_each_record_and_its_outcome(page):
    text = (page / "records.md").read_text(encoding="utf-8")
    parts = dict(zip(studies.NAMES, text.split("\n## ")[1:], strict=True))
    for name, part in parts.items():
        module = studies.study(name)
        found = [each for dataset in module.DATASETS if (each := record.read(name, dataset))]
        assert module.QUESTION in part
        assert part.count("{dropdown}") == len(found)
        for each in found:
            assert f"{{download}}`CSV <records/{name}_{each.plan['dataset']}.csv>`" in part
            assert each.hash in part
            assert all(note["commit"][:10] in part for note in each.notes)
        assert ("Not recorded yet" in part) == (not found)


@pytest.mark.parametrize(("name", "dataset"), [("third_axis", "digits"), ("curve", "patches")])
def test_a_file_has_the_rows_of_the_record(page, name, dataset):
    found = record.read(name, dataset)
    rows = pd.read_csv(io.StringIO((page / "records" / f"{name}_{dataset}.csv").read_text()))
    pd.testing.assert_frame_equal(rows, pd.read_csv(io.StringIO(found.frame.to_csv(index=False))))
    assert len(rows) == len(found.frame)
    assert rows["value"].sum() == pytest.approx(found.frame["value"].sum(), rel=1e-12)


def test_what_a_study_says_is_no_markup():
    docutils = pytest.importorskip("docutils.nodes")
    from myst_parser.mdit_to_docutils.base import make_document
    from myst_parser.parsers.docutils_ import Parser

    said = "of *1* [|E z² − 1|](x) with a_b_c and `q` <b> $x$ {ref}`y` \\ ~~z~~ # 1"
    document = make_document(parser_cls=Parser)
    Parser().parse(records.plain(said), document)
    assert document.astext() == said
    assert not list(document.findall(docutils.literal))
