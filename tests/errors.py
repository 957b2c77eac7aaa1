"""What tests of a refusal have in common: the error of a call, and its message of one line."""

from collections.abc import Callable
from typing import Any

import pytest


def one_line(call: Callable[[], Any], *words: str, match: str | None = None, error: type[Exception] = ValueError) -> Exception:
    """The error that the call raises. Its message is one line, not empty; it has each of the words as they are written, and
    `match`, a regular expression."""
    with pytest.raises(error, match=match) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    for word in words:
        assert word in message, message
    return caught.value
