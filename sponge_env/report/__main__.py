"""Report what runs found: ``python -m sponge_env.report RUNS``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.files import check_writable, replacing

if TYPE_CHECKING:
    from sponge_env.report.section import Section

PAGE = "report.html"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="python -m sponge_env.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders that evaluate.py wrote"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where {PAGE} and its pictures go (default: report in the first run)",
    )
    parser.add_argument(
        "--agent",
        nargs="+",
        default=[],
        metavar="NAME",
        help="agents shown where there is no room for all",
    )
    parser.add_argument(
        "--fidelity",
        type=Path,
        metavar="FILE",
        help="fidelity.json of python -m sponge_env.fidelity",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write this too, with its pictures beside it"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="write its part about results anew"
    )
    arguments = parser.parse_args(argv)
    if arguments.markdown and len(arguments.runs) > 1:
        raise ConfigError("--markdown is about one run; name only one")
    if arguments.readme and not arguments.markdown:
        raise ConfigError("--readme needs --markdown, whose picture it shows")
    return arguments


def run(argv: Sequence[str]) -> int:
    """Read everything, then write everything; return the exit code."""
    arguments = parse(argv)
    # These bring pandas, SciPy and Matplotlib, which a mistyped option should not wait for.
    from sponge_env.report.render import around_results
    from sponge_env.report.section import sections

    out = arguments.out or arguments.runs[0] / "report"
    shown = sections(arguments.runs, arguments.agent, arguments.fidelity)
    texts = [path for path in (out / PAGE, arguments.markdown, arguments.readme) if path]
    if arguments.readme:
        around_results(arguments.readme)  # notices a README without marks
    for path in texts:
        check_writable(path)
    write(_files(shown, out, arguments.markdown, arguments.readme))
    for path in texts:
        sys.stdout.write(f"wrote {path}\n")
    return 0


def _files(
    shown: Sequence[Section], out: Path, markdown: Path | None, readme: Path | None
) -> dict[Path, str | bytes]:
    """Return the content of every file of a report."""
    from sponge_env.report.render import page, results, with_results

    pictures = [section.pictures() for section in shown]
    files: dict[Path, str | bytes] = {out / PAGE: page(shown, pictures)}
    for n, drawn in enumerate(pictures, start=1):
        prefix = f"{n}-" if len(pictures) > 1 else ""
        files |= {out / f"{prefix}{name}.png": p.content for name, p in drawn.items()}
    if markdown:
        text, beside = results(shown[0], pictures[0])
        files |= {markdown: text} | {markdown.parent / name: p for name, p in beside.items()}
        if readme:
            files[readme] = with_results(readme, shown[0], markdown.parent)
    return files


def write(files: Mapping[Path, str | bytes]) -> None:
    """Write files, each whole or not at all.

    Raises:
        RunDirectoryError: One cannot be written.
    """
    for path, content in files.items():
        with replacing(path) as partial:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
