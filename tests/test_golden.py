"""What is computed stays as it was recorded, to the bit; ``golden/record.py`` checks all of it."""

from __future__ import annotations

from collections import Counter

import pytest
from golden import cells, record

RECORDED, NAMES = record.read(), record.read("columns")
SUBSET = record.subset(RECORDED)


@pytest.mark.parametrize("key", SUBSET)
def test_it_is_computed_as_recorded(key: str) -> None:
    assert not list(record.differences(key, RECORDED[key], NAMES))


def test_every_agent_and_cell_is_among_those_that_are_checked() -> None:
    chosen, played = ([cells.Episode.of(key) for key in each] for each in (SUBSET, RECORDED))
    agents, places = Counter(e.agent for e in chosen), Counter(e.cell for e in chosen)
    assert all(agents[e.agent] >= 2 for e in played if e.agent not in cells.VARIANTS)
    assert all(places[cell] >= 2 for cell in cells.CELLS)


def test_a_difference_is_named() -> None:
    now, before = {"row": {"x": 1, "y": 2}}, {"row": {"x": 1, "y": 3}}
    assert list(record.compared(now, before)) == ["row.y: 3 -> 2"]
