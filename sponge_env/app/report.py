"""Report what runs found: ``sponge report RUN ...``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sponge_env import cli
from sponge_env.errors import ConfigError, unknown
from sponge_env.scenario.config import Backend
from sponge_env.utils.files import check_writable, write_all
from sponge_env.utils.installation import require_extra

PAGE = "report.html"


@cli.command
def main(argv: Sequence[str]) -> int:
    """Read everything, then write page, pictures and tables; return the exit code."""
    arguments = _parse(argv)
    require_extra("report", "the report")
    # These bring pandas and Matplotlib, which a mistyped option should not wait for.
    from sponge_env.fidelity.report import side_by_side
    from sponge_env.results.comparison import load_run
    from sponge_env.results.page import draw_all, page
    from sponge_env.results.suite_tables import csv_files
    from sponge_env.run.read import load_episodes

    runs = [load_run(path, arguments.reference) for path in arguments.runs]
    known = {agent for run in runs for agent in run.comparison.agents}
    if arguments.reference and arguments.reference not in known:
        raise ConfigError(unknown("agent", arguments.reference, known))
    around = arguments.runs[0]
    if len(runs) > 1 and len({path.absolute().parent for path in arguments.runs}) == 1:
        around = around.parent  # the folder in which all are
    out = arguments.out or around / "report"
    check_writable(out / PAGE)
    pictures = [draw_all(run.comparison) for run in runs]
    both = [side_by_side(*map(load_episodes, _runs_in(path))) for path in arguments.both]
    beside = [(f"{'. '.join(notes)}.", {"": table}) for table, notes in both if table.rows]
    files: dict[str, str | bytes] = {PAGE: page(runs, pictures, beside)}
    for n, (run, drawn) in enumerate(zip(runs, pictures, strict=True), start=1):
        prefix = f"{n}-" if len(runs) > 1 else ""
        files |= {f"{prefix}{name}.png": picture.content for name, picture in drawn.items()}
        files |= {f"{prefix}{name}": text for name, text in csv_files(run.comparison).items()}
    write_all(out, files)
    sys.stdout.write(f"wrote {out / PAGE}, its pictures, and its tables as CSV\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="sponge report", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders that evaluate.py wrote")
    where = f"where {PAGE}, its pictures and tables go (default: report in the run, of several in "
    where += "the folder that they are in)"
    add("--out", type=Path, metavar="DIR", help=where)
    text = "agent that the others are compared with (default: the suite's)"
    add("--reference", default="", metavar="AGENT", help=text)
    arguments = parser.parse_args(argv)
    arguments.both = [path for path in arguments.runs if len(_runs_in(path)) > 1]
    arguments.runs = [run for path in arguments.runs for run in _runs_in(path)]
    return arguments


def _runs_in(path: Path) -> list[Path]:
    """Return the two runs of a folder of ``--backend both``; any other folder as it is."""
    both = [path / backend for backend in get_args(Backend)]
    return both if all(each.is_dir() for each in both) else [path]
