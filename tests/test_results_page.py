"""The command, and what it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image
from report_runs import COLD, WARM, keep, write, write_suite

from benchmarks.targets import main as ours
from sponge_env.results.__main__ import main
from sponge_env.results.comparison import load_run
from sponge_env.results.figures import style_of, summary_figure
from sponge_env.results.layout import Entry, Table, code, markdown, plain
from sponge_env.results.page import featured

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
VIOLATIONS = [0, 1, 0, 0, 0, 0, 0, 0]
AGENTS = {
    "sponge-ip": (VIOLATIONS, 8.0),
    "fa2": ([40, 41, 40, 40, 40, 41, 40, 40], 5.0),
    "static-8": (VIOLATIONS, 8.0),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bounds = {"oracle": 4.0, "oracle-joint": 3.0}
    path = write_suite(tmp_path_factory.mktemp("runs") / "run", AGENTS, bounds=bounds)
    keep(path, "vpa", COLD, {}, type="ValueError", message="1 < 2")
    return path


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    """Everything that the command writes, in one folder."""
    folder = run.parent
    (folder / "README.md").write_text(f"# Head\n{BEGIN}\nformer\n{END}\ntail\n")
    write(folder / "fidelity.json", fidelity())
    argv = [str(run), "--markdown", str(folder / "docs/results.md")]
    argv += ["--readme", str(folder / "README.md"), "--fidelity", str(folder / "fidelity.json")]
    slow = ("paper-300kb-delay-2", *COLD[1:])
    sweeps = {"delay [s]": {"0": [COLD], "2": [slow]}}
    arrangement = {"cells": [COLD], "sweeps": sweeps, "about": {"delay [s]": "Of a resize."}}
    swept = write_suite(folder / "swept", AGENTS, [COLD, slow], arrangement=arrangement)
    argv += ["--sensitivity", str(swept)]
    assert ours(argv) == 0
    return folder


def fidelity() -> dict[str, object]:
    row = {"agent": "fa2", "scenario": "local", "quantity": "latency_mean_s"}
    row |= {"live": 0.1, "live_min": 0.09, "live_max": 0.11, "simulated": 0.104, "replayed": 0.1}
    live = {"kind": "live", "limiter": "cgroup-v1", "repetition": 4, "duration_s": 60.0}
    live |= {"cpu_ratio": 1.01, "scenario": "local"}
    ours, theirs = ({"agent": a} | live for a in ("sponge-mpc", "fa2"))
    ours["avoidable_violation_rate"], theirs["avoidable_violation_rate"] = 0.001, 0.02
    host = {"cpu_model": "M", "cpus": 2, "kernel": "Linux"}
    found = {"command": ["python"], "host": host, "profile_date": "2026-01-01"}
    return {**found, "trials": [ours, theirs], "comparison": [row]}


def test_the_page_needs_no_other_file(written: Path) -> None:
    page = (written / "run/report/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 8  # 2 of all, 2 of each scenario, 1 of each cell


def test_pictures_lie_beside_the_page(written: Path) -> None:
    names = {path.stem for path in (written / "run/report").glob("*.png")}
    cells = {f"series-{'-'.join(cell)}" for cell in (COLD, WARM)}
    scenarios = {f"{kind}-{cell[0]}" for kind in ("pareto", "latency") for cell in (COLD, WARM)}
    assert names == {"pareto", "summary", "decisions"} | cells | scenarios
    with Image.open(written / "run/report/pareto.png") as picture:
        assert picture.width > 500


def test_sweeps_of_another_run_have_a_section_of_their_own(written: Path) -> None:
    text = (written / "docs/results.md").read_text()
    section = text.partition("## Sensitivity")[2].partition("## Over time")[0]
    assert "### Delay [s], cold start\n\nOf a resize.\n\n| agent | 0 | 2 |" in section
    assert "| fa2 | 4.03 % · 5.00 | 4.03 % · 5.00 |" in section
    assert "paper-300kb-delay-2" not in text
    assert "<h3>delay [s], cold start</h3>" in (written / "run/report/report.html").read_text()


def test_a_run_without_sweeps_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--sensitivity", str(run)]) == 2
    error = capsys.readouterr().err
    assert "has no sweeps; run evaluate.py --suite sensitivity" in error
    assert error.count("\n") == 1


def test_swept_cells_are_in_no_other_table(tmp_path: Path) -> None:
    slow = ("paper-300kb-delay-2", *COLD[1:])
    arrangement = {"cells": [COLD], "sweeps": {"delay": {"0": [COLD], "2": [slow]}}}
    path = write_suite(tmp_path / "run", AGENTS, [COLD, slow], arrangement=arrangement)
    assert load_run(path).comparison.cells == [COLD]


def test_failures_stand_in_the_page_and_the_markdown(written: Path) -> None:
    assert "ValueError: 1 &lt; 2" in (written / "run/report/report.html").read_text()
    assert (
        "| vpa | paper-300kb, yolov5s, cold | ValueError: 1 &lt; 2 |"
        in (written / "docs/results.md").read_text()
    )


def test_text_from_files_is_no_markup() -> None:
    said = "<script>1 & 2</script> | [click](javascript:x)\nend"
    escaped = r"&lt;script>1 &amp; 2&lt;/script> \| [click]\(javascript:x) end"
    assert plain(said) == escaped
    assert markdown(Table([said], [[Entry(said)]])).splitlines()[2] == f"| {escaped} |"
    assert code("a `b`\nc") == "`a 'b' c`"


def test_what_is_not_significant_is_marked(written: Path) -> None:
    page = (written / "run/report/report.html").read_text()
    (row,) = set(re.findall(r"<tr><td>static-8</td><td>0.013.*n\.s\..*</tr>", page))
    assert '<td class="muted">0.013 [0.000, 0.042] n.s.</td>' in row
    (row,) = set(re.findall(r"<tr><td>fa2</td><td>4.025.*</tr>", page))
    assert re.search(r"<td>4.025 \[3.9\d\d, 4.0\d\d\]</td>", row)


def test_bounds_stand_in_the_tables_of_cells(written: Path) -> None:
    page = (written / "run/report/report.html").read_text()
    assert len(re.findall(r"<tr><td>oracle-joint</td>.*<td>2.94 .. 3.00</td>", page)) == 2


def test_the_markdown_names_host_command_and_pictures(written: Path) -> None:
    text = (written / "docs/results.md").read_text()
    assert "Host: M, 2 of 2 CPUs, Linux." in text
    assert "Command: `python evaluate.py`." in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4
    assert all((written / "docs" / name).stat().st_size < 200_000 for name in pictures)


def test_the_fidelity_result_is_included(written: Path) -> None:
    text = (written / "docs/results.md").read_text()
    assert (
        "| fa2 | mean [ms] | 100.0 | 90.0 .. 110.0 | 104.0 | +4.0 % | met | 100.0 | +0.0 % |"
        in text
    )
    assert "| simulator against the real worker |" in text
    assert "Command `python`. Host: M, 2 CPUs, Linux; limiter cgroup-v1" in text
    assert (
        "| fa2 / sponge-mpc, local live: avoidable violations | at least 15 times, in every "
        "repetition | 2.000 % against 0.100 %; in 1 of 1 repetitions | met |" in text
    )
    assert "5 repetitions with the same arrivals" in text
    assert "limiter cgroup-v1" in (written / "run/report/report.html").read_text()


def test_a_users_report_has_no_targets_of_ours(run: Path, tmp_path: Path) -> None:
    argv = [str(run), "--out", str(tmp_path), "--markdown", str(tmp_path / "results.md")]
    assert main(argv) == 0
    text = (tmp_path / "results.md").read_text()
    assert "the cheapest agent" in text
    assert "Targets" not in text
    assert "against sponge-ip" not in text


def test_only_the_part_between_the_marks_changes(written: Path) -> None:
    readme = (written / "README.md").read_text()
    assert readme.startswith(f"# Head\n{BEGIN}\n![")
    assert readme.endswith(f"\n{END}\ntail\n")
    assert "(docs/comparison.png)" in readme
    assert "| `fa2` | 4.025 % | 1.67 | 4.025 % | 1.67 |" in readme
    assert "former" not in readme


def test_the_same_run_gives_the_same_page(written: Path, tmp_path: Path) -> None:
    argv = [str(written / "run"), "--fidelity", str(written / "fidelity.json")]
    argv += ["--sensitivity", str(written / "swept")]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    name = "report.html"
    assert (tmp_path / name).read_bytes() == (written / "run/report" / name).read_bytes()


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    runs = [write_suite(tmp_path / name, {"fa2": ([0], 8.0)}, [COLD]) for name in ("a", "b")]
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert re.findall(r"<h1>(.*)</h1>", page) == [f"Run {tmp_path.name}/{run}" for run in "ab"]
    assert (tmp_path / "out/2-pareto.png").exists()


def test_a_run_on_both_backends_is_one_page_in_its_folder(tmp_path: Path) -> None:
    for backend in ("sim", "live"):
        agents = {"fa2": ([0], 8.0), "static-8": ([0], 8.0)}
        write_suite(tmp_path / "both" / backend, agents, [COLD])
    assert main([str(tmp_path / "both")]) == 0
    page = (tmp_path / "both/report/report.html").read_text()
    assert sorted(re.findall(r"<h1>(.*)</h1>", page)) == ["Run both/live", "Run both/sim"]
    assert "with 1 agent it takes" in page


def test_the_choice_of_agents_is_the_users(run: Path, tmp_path: Path) -> None:
    source = load_run(run)
    assert featured(source, ["static-8", "fa2"]) == ["fa2", "static-8"]
    many = {name: ([0], 8.0) for name in ("a", "b", "c", "d", "e", "fa2", "sponge-ip", "static-8")}
    crowded = load_run(write_suite(tmp_path / "run", many, [COLD]))
    assert featured(crowded) == ["sponge-ip", "fa2"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("{tmp}/missing", "is no run"),
        ("{run} {run} --markdown {tmp}/a.md", "--markdown is about one run"),
        ("{run} --readme {tmp}/README.md", "--readme needs --markdown"),
        ("{run} --markdown {tmp}/a.md --readme {tmp}/README.md", "cannot read"),
        ("{run} --markdown {tmp}/a.md --readme {tmp}/bare.md", "lacks the lines"),
        ("{run} --agent fa3", "unknown agent 'fa3'"),
        ("{run} --fidelity {tmp}/bare.md", "cannot read"),
        ("{run} --fidelity {tmp}/other.json", "is no result of this version's"),
        ("{run} --out {tmp}/bare.md", "cannot write"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    (tmp_path / "bare.md").write_text("no marks\n")
    (tmp_path / "other.json").write_text(json.dumps({"trials": []}))
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(run=run, tmp=tmp_path) for word in argv.split()]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_goes_from_scenarios_to_targets(written: Path) -> None:
    text = (written / "docs/results.md").read_text()
    headings = re.findall("^## (.*)$", text, flags=re.M)
    assert headings[:2] == ["Scenario by scenario", "What was learned"]
    assert headings[2:4] == ["The paper says, we find", "Sensitivity"]
    assert headings[-1] == "Targets"
    assert re.search(r"### flash-crowd\n\n\| controller \| avoidable violations, cold start", text)


def test_each_point_of_the_summary_has_its_name_in_the_picture(run: Path) -> None:
    comparison = load_run(run).comparison
    figure = summary_figure(comparison, style_of(list(AGENTS)))
    for ax, start in zip(figure.axes, comparison.starts, strict=True):
        names = {text.get_text(): text for text in ax.texts}
        assert names.keys() == {*AGENTS, "better"}, start
        boxes = [Text.get_window_extent(names[agent]) for agent in AGENTS]
        assert not any(box.count_overlaps(boxes) > 1 for box in boxes)
        assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
