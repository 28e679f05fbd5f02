"""Records the golden files, or checks that everything is still computed as they say.

python -m tests.golden.record            write them anew, with the columns of ``columns.json``,
                                         or of today where that is not there
python -m tests.golden.record --check    play everything and say what differs
    --only PATTERN                       only entries whose file/key contains it
"""

import argparse
import json
import sys
import time
from pathlib import Path

from . import play
from .entries import MAKERS, keys

HERE = Path(__file__).resolve().parent
COLUMNS = HERE / "columns.json"


def read(name):
    return json.loads((HERE / f"{name}.json").read_text())


def read_names():
    return json.loads(COLUMNS.read_text())["columns"]


def differences(name, key, before, names):
    yield from compared(MAKERS[name](key, names), before)


def compared(entry, before, where=""):
    for part in sorted(entry.keys() | before.keys()):
        was, now = before.get(part), entry.get(part)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from compared(now, was, f"{where}{part}.")
        elif was != now:
            yield f"{where}{part}: {was} -> {now}"


def _lines(entries):
    rows = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in entries.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def record(only):
    if not COLUMNS.exists():
        COLUMNS.write_text(json.dumps({"columns": play.column_names()}, indent=1) + "\n")
    names = read_names()
    for name, each in keys().items():
        kept = read(name) if only else {}
        entries = {
            key: MAKERS[name](key, names) if only in f"{name}/{key}" else kept[key]
            for key in each
            if only in f"{name}/{key}" or key in kept
        }
        (HERE / f"{name}.json").write_text(_lines(entries))
        sys.stdout.write(f"{name}: {len(entries)} entries\n")


def check(only):
    """Play everything that is recorded; return how many entries differ."""
    names, now, differing = read_names(), keys(), 0
    for name in MAKERS:
        entries, started_s = read(name), time.perf_counter()
        chosen = [key for key in entries if only in f"{name}/{key}"]
        for key in chosen:
            if found := list(differences(name, key, entries[key], names)):
                differing += 1
                sys.stdout.write(f"{name}/{key} differs\n    " + "\n    ".join(found) + "\n")
        took_s = time.perf_counter() - started_s
        sys.stdout.write(f"{name}: {len(chosen)} entries checked in {took_s:.0f} s\n")
        if new := [key for key in now[name] if key not in entries]:
            sys.stdout.write(f"{name}: not recorded: {', '.join(new)}\n")
    sys.stdout.write(f"{differing} entries differ\n")
    return differing


def main():
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
