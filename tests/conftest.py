import sys

import pytest
import torch

# Two threads are no faster on the small tensors here, and one makes sums independent of the machine.
torch.set_num_threads(1)


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
