"""The site of the documentation: ``python -m benchmarks.pages [FOLDER]``.

The pages are those of the repository. What they link becomes part of the site as well, so that
every link works in both. The help of all commands is one more page.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension, Object

from sponge_env import __main__, cli
from sponge_env.utils.files import read_json

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")
COMMENT = re.compile(r"  # (?!noqa|type:)(.+)$")
SHOWN = {".py", ".service", ".sh", ".toml", ".yaml"}  # Endings of files that become pages


class Roles(Extension):
    """Shows a field's comment as its docstring, and the names in docstrings without their roles."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change its docstring."""
        if not obj.docstring and obj.is_attribute and (comment := COMMENT.search(obj.source)):
            obj.docstring = Docstring(comment[1], parent=obj)
        if obj.docstring:
            role = r":\w+:`(?:~(?:\w*\.)*|\.+)?([^`]+)`"
            obj.docstring.value = re.sub(role, r"`\1`", obj.docstring.value)


@cli.command
def main(argv: Sequence[str]) -> int:
    """Write pages/ and site/ in the folder, ``build`` by default; fail after any warning."""
    folder = Path(argv[0] if argv else ROOT / "build").absolute()
    shutil.rmtree(folder / "pages", ignore_errors=True)
    write_pages(folder / "pages")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"]
    where = {"SITE_PAGES": str(folder / "pages"), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=os.environ | where, check=False).returncode


def write_pages(folder: Path) -> None:
    """Write all pages, what they link, and what that links."""
    docs = ROOT / "docs"
    waiting = [ROOT / "README.md", ROOT / "CHANGELOG.md", *docs.glob("*.md"), docs / "site.css"]
    for linked in waiting:  # grows meanwhile
        path = linked / "README.md" if (linked / "README.md").exists() else linked
        place, base = folder / _place(path), path if path.is_dir() else path.parent
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or path.suffix in {".md", ".ipynb", *SHOWN}:
            text = _text(path)
            links = LINK.findall(text) if path.is_dir() or path.suffix == ".md" else ()
            files = {link: (base / link).resolve() for link in links}
            waiting += files.values()
            places = {link: folder / _place(file) for link, file in files.items()}
            to = {link: os.path.relpath(there, place.parent) for link, there in places.items()}
            place.write_text(LINK.sub(lambda link, to=to: to.get(link[0], link[0]), text))
        else:
            shutil.copy(path, place)
    (folder / "commands.md").write_text(_commands())


def _place(path: Path) -> Path:
    """Return where in the site a file or folder of the repository is."""
    docs = ROOT / "docs"
    place = path.relative_to(docs if path.is_relative_to(docs) else ROOT)
    if path.is_dir() or path.name == "README.md":
        return (place if path.is_dir() else place.parent) / "index.md"
    return place.with_name(place.name + ".md" * (place.suffix in {".ipynb", *SHOWN}))


def _text(path: Path) -> str:
    if path.is_dir():
        names = sorted({p.name for p in path.iterdir() if p.name[0] not in "._"} - {"runs"})
        return f"# {path.name}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    if path.suffix == ".md":
        return path.read_text()
    if path.suffix != ".ipynb":
        return f"# {path.name}\n\n{_fence(path.read_text(), path.suffix[1:])}"
    page = ""
    for cell in read_json(path)["cells"]:
        source = "".join(cell["source"])
        page += f"{source}\n\n" if cell["cell_type"] == "markdown" else _fence(source, "python")
        for output in [each for each in cell.get("outputs", ()) if each.get("name") != "stderr"]:
            data = output.get("data", {})
            picture = f"![plot](data:image/png;base64,{data.get('image/png', '').strip()})\n\n"
            text = "".join(output.get("text") or data["text/plain"])
            page += picture if "image/png" in data else _fence(text, "text")
    return page


def _commands() -> str:
    """Return the help of every command."""
    os.environ["COLUMNS"], sys.argv[0] = "100", "sponge"
    page = "# Commands\n\n"
    others = [[name, "--help"] for name in __main__.COMMANDS if name != "list"]
    for words in (["--help"], *others, ["list"]):
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            __main__.main(words)
        page += f"## sponge {' '.join(words)}\n\n{_fence(shown.getvalue(), 'text')}"
    return page


def _fence(text: str, language: str) -> str:
    return f"~~~~{language}\n{text.rstrip()}\n~~~~\n\n"


if __name__ == "__main__":
    sys.exit(main())
