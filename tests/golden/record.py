"""Records the golden files, or checks that everything is still computed as they say.

python -m tests.golden.record            write them anew, with the columns of ``columns.json``,
                                         or of today where that is not there
python -m tests.golden.record --check    play everything and say what differs
    --only PATTERN                       only entries whose key contains it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import cells, play
from .play import Entry, Names

HERE = Path(__file__).resolve().parent
COLUMNS = HERE / "columns.json"


def read(name: str = "episodes") -> dict[str, Entry]:
    entries: dict[str, Entry] = json.loads((HERE / f"{name}.json").read_text())
    return entries


def differences(key: str, before: Entry, names: Names) -> Iterator[str]:
    """Make an entry anew and yield what is not as it was."""
    yield from compared(play.entry(key, names), before)


def compared(entry: Mapping[str, Any], before: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield the parts of an entry that are not as they were."""
    for part in sorted(entry.keys() | before.keys()):
        was, now = before.get(part), entry.get(part)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from compared(now, was, f"{where}{part}.")
        elif was != now:
            yield f"{where}{part}: {was} -> {now}"


def _lines(entries: Mapping[str, Entry]) -> str:
    rows = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in entries.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def record(only: str) -> None:
    """Write files anew."""
    if not COLUMNS.exists():
        COLUMNS.write_text(json.dumps(play.column_names(), indent=1) + "\n")
    names, kept = read("columns"), read() if only else {}
    entries = {
        key: play.entry(key, names) if only in key else kept[key]
        for key in keys()
        if only in key or key in kept
    }
    (HERE / "episodes.json").write_text(_lines(entries))
    sys.stdout.write(f"{len(entries)} entries\n")


def check(only: str) -> int:
    """Play everything that is recorded; return how many entries differ."""
    names, entries, differing = read("columns"), read(), 0
    chosen = [key for key in entries if only in key]
    for key in chosen:
        if found := list(differences(key, entries[key], names)):
            differing += 1
            sys.stdout.write(f"{key} differs\n    " + "\n    ".join(found) + "\n")
    if new := [key for key in keys() if key not in entries]:
        sys.stdout.write(f"not recorded: {', '.join(new)}\n")
    sys.stdout.write(f"{differing} of {len(chosen)} entries differ\n")
    return differing


def keys() -> list[str]:
    return [one.key for one in cells.episodes(play.registered())]


def subset(recorded: Iterable[str]) -> list[str]:
    """Choose what is checked in every test run.

    Of each cell two agents, one of each start where there are two and four of each where there are
    stages, those that were seen least so far.
    """
    starts: dict[tuple[str, str], list[str]] = {}
    for key in recorded:
        one = cells.Episode.of(key)
        starts.setdefault((one.cell, one.start), []).append(key)
    chosen: list[str] = []
    seen: Counter[str] = Counter()
    for (cell, _), keys in starts.items():
        where = cells.CELLS[cell]
        for _ in range(4 if where.stages else 2 // len(where.starts)):
            rest = (key for key in keys if key not in chosen)
            chosen.append(min(rest, key=lambda key: seen[cells.Episode.of(key).agent]))
            seen[cells.Episode.of(chosen[-1]).agent] += 1
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    if not arguments.check:
        record(arguments.only)
        return 0
    return min(1, check(arguments.only))


if __name__ == "__main__":
    sys.exit(main())
