"""Banks of adapters on the tiny backbone."""

import pytest
from tiny import tiny_bank


@pytest.fixture
def banks():
    """Make banks: `banks(method, filled=seed, backbone=...)`. At the end of the test they come off the backbone."""
    made = []

    def bank(method, **options):
        made.append(tiny_bank(method, **options))
        return made[-1]

    yield bank
    for each in made:
        each.close()
