"""Report what runs found: ``python -m sponge_env.results RUNS``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Backend
from sponge_env.utils.files import check_writable, replacing
from sponge_env.utils.installation import require_extra

if TYPE_CHECKING:
    from sponge_env.results.page import Remarks, Section

PAGE = "report.html"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="sponge report", description=__doc__)
    add, file = parser.add_argument, partial(parser.add_argument, type=Path, metavar="FILE")
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders that evaluate.py wrote")
    where = f"where {PAGE} and its pictures go (default: report in the run, of several in the "
    where += "folder that they are in)"
    add("--out", type=Path, metavar="DIR", help=where)
    few = "agents shown where there is no room for all"
    add("--agent", nargs="+", default=[], metavar="NAME", help=few)
    file("--fidelity", nargs="+", default=[], help="fidelity.json of sponge fidelity")
    said = "run of the suite sensitivity, whose sweeps go with the first run"
    add("--sensitivity", type=Path, metavar="RUN", help=said)
    said = "run of the suite stages, which the Markdown of the first run has a part about"
    add("--stages", type=Path, metavar="RUN", help=said)
    file("--markdown", help="write this too, with its pictures beside it")
    file("--readme", help="write its part about results anew")
    arguments = parser.parse_args(argv)
    arguments.runs = [run for path in arguments.runs for run in _runs_in(path)]
    if arguments.markdown and len(arguments.runs) > 1:
        raise ConfigError("--markdown is about one run; name only one")
    if arguments.stages and not arguments.markdown:
        raise ConfigError("--stages needs --markdown; the report of that run is one of its own")
    if arguments.readme and not arguments.markdown:
        raise ConfigError("--readme needs --markdown, whose picture it shows")
    return arguments


def _runs_in(path: Path) -> list[Path]:
    """Return the two runs of a folder of ``--backend both``; any other folder as it is."""
    both = [path / backend for backend in get_args(Backend)]
    return both if all(each.is_dir() for each in both) else [path]


def _around(runs: Sequence[Path]) -> Path:
    """Return the only run, or the folder in which several are; the first if that is not one."""
    folders = {run.absolute().parent for run in runs}
    return runs[0].parent if len(runs) > 1 and len(folders) == 1 else runs[0]


def run(argv: Sequence[str], remark: Callable[[Section], Remarks] | None = None) -> int:
    """Read everything, then write everything, with more to say in the Markdown if there is."""
    arguments = parse(argv)
    require_extra("report", "the report")
    # These bring pandas, SciPy and Matplotlib, which a mistyped option should not wait for.
    from sponge_env.results.page import Remarks, around, page, results, sections, with_results

    out = arguments.out or _around(arguments.runs) / "report"
    others = arguments.fidelity, arguments.sensitivity, arguments.stages
    shown = sections(arguments.runs, arguments.agent, *others)
    texts = [path for path in (out / PAGE, arguments.markdown, arguments.readme) if path]
    if arguments.readme:
        around(arguments.readme)  # notices a README without marks
    for path in texts:
        check_writable(path)
    pictures = [section.pictures() for section in shown]
    files: dict[Path, str | bytes] = {out / PAGE: page(shown, pictures)}
    for n, drawn in enumerate(pictures, start=1):
        prefix = f"{n}-" if len(pictures) > 1 else ""
        files |= {out / f"{prefix}{name}.png": p.content for name, p in drawn.items()}
    if arguments.markdown:
        remarks = remark(shown[0]) if remark else Remarks()
        text, beside = results(shown[0], pictures[0], remarks)
        folder = arguments.markdown.parent
        files |= {arguments.markdown: text} | {folder / name: p for name, p in beside.items()}
        if arguments.readme:
            files[arguments.readme] = with_results(arguments.readme, shown[0], remarks, folder)
    for path, content in files.items():
        with replacing(path) as partial:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    sys.stdout.writelines(f"wrote {path}\n" for path in texts)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
