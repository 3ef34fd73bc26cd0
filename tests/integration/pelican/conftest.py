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


@pytest.fixture
def served_files() -> Iterator[None]:
    """Give new files mode 644: the servers run as a user of their own, and read what a test puts below their export."""
    before = os.umask(0o022)
    yield
    os.umask(before)
