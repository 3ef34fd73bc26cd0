"""Token files that these tests write are private, as crmuons asks for."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def private_files() -> Iterator[None]:
    """Give new files mode 600: token files that others may read are refused."""
    before = os.umask(0o077)
    yield
    os.umask(before)
