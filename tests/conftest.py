import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

# Two threads are no faster on the small tensors here, and one makes sums independent of the machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def html() -> Path:
    """The built book, if it is that of the sources as they are."""
    import rendering

    built = ROOT / "_build" / "html"
    if not (built / ".key").is_file() or (built / ".key").read_text() != rendering.book_key(ROOT):
        pytest.skip("the book is not built, or older than its sources: run `make book`")
    return built


@pytest.fixture(autouse=True)
def _keeps_studies_apart(request, monkeypatch):
    """What a test runs of the studies is not found there by the next one, nor left in the repository."""
    if "studies" in sys.modules:
        monkeypatch.setattr("studies.KEPT", str(request.getfixturevalue("tmp_path") / ".studies"))


@pytest.fixture(autouse=True)
def _leaves_globals_alone():
    """Every test leaves torch's default type as it was, and none depends on the stream left by the one before."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == before
