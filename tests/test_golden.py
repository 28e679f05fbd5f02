"""What is computed stays as it was recorded, to the bit; ``golden/record.py`` checks all of it."""

from collections import Counter

import pytest
from golden import cells, entries, record

RECORDED = {name: record.read(name) for name in entries.MAKERS}
SUBSET = entries.subset({name: list(kept) for name, kept in RECORDED.items()})
NAMES = record.read_names()


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in SUBSET for key in SUBSET[name]])
def test_it_is_computed_as_recorded(name, key):
    assert not list(record.differences(name, key, RECORDED[name][key], NAMES))


def test_every_agent_and_cell_is_among_those_that_are_checked():
    chosen = [cells.Episode.of(key) for key in SUBSET["episodes"]]
    played = {cells.Episode.of(key).agent for key in RECORDED["episodes"]}
    agents, places = Counter(e.agent for e in chosen), Counter(e.cell for e in chosen)
    assert {agent for agent in played - cells.VARIANTS.keys() if agents[agent] < 2} == set()
    assert {cell for cell in cells.CELLS if places[cell] < 2} == set()


def test_a_difference_is_named():
    now, before = {"row": {"x": 1, "y": 2}}, {"row": {"x": 1, "y": 3}}
    assert list(record.compared(now, before)) == ["row.y: 3 -> 2"]
