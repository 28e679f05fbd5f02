"""Break the core's rules, one after the other, and see a test fail for each.

    python -m tests.mutations [NAME ...]

It takes some minutes and is no part of the test run: it asks whether the tests can fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("sponge_env", "agents", "baselines", "traces", "tests", "docs", "pyproject.toml")
TESTS = (
    "test_serving",
    "test_bucket",
    "test_pipeline",
    "test_system",
    "test_total_cores",
    "test_vector_differential",
)

MUTATIONS: dict[str, tuple[str, str, str]] = {
    "what is due at this moment is late": (
        "batching.py",
        "return finished_s <= due_s",
        "return finished_s < due_s",
    ),
    "what has just expired is kept": (
        "batching.py",
        "return due_s < w.env.now_s - w.settings.drop_grace_s",
        "return due_s < w.env.now_s - w.settings.drop_grace_s - 0.001",
    ),
    "batches are one request too small": (
        "batching.py",
        "count = min(batch_max, stage.tail - stage.head)",
        "count = min(max(1, batch_max - 1), stage.tail - stage.head)",
    ),
    "hopeless requests count as avoidable": (
        "batching.py",
        "metrics.avoidable_violations += not request.hopeless",
        "metrics.avoidable_violations += 1",
    ),
    "equal deadlines in the order of arrival reversed": (
        "queue.py",
        "return w.requests[row].id < w.requests[other].id",
        "return w.requests[row].id > w.requests[other].id",
    ),
    "the latest deadline first": (
        "queue.py",
        "return one_s < other_s",
        "return one_s > other_s",
    ),
    "draining replicas hold no cores": (
        "replicas.py",
        "stage.held_cores = float(stage.cores * stage.replicas)",
        "stage.held_cores = float(stage.cores * _staying(w))",
    ),
    "idle replicas go before cold ones": (
        "replicas.py",
        "rank = (1 + (replica.batch_size > 0)) if ready else 0",
        "rank = (replica.batch_size > 0) if ready else 1",
    ),
    "a resize leaves the running batch alone": (
        "service.py",
        "replica.finish_s = now_s + (replica.finish_s - now_s) * (new_s / old_s)",
        "replica.finish_s = max(now_s, replica.finish_s + 0.0 * (new_s / old_s))",
    ),
    "the base delay is forgotten": (
        "arrivals.py",
        "arrival_s = end_s + settings.network.base_delay_s",
        "arrival_s = end_s",
    ),
    "a throttled group gets no debt back": (
        "quota.py",
        "replica.pool_s = min(replica.pool_s, replica.granted_s)",
        "replica.pool_s = replica.granted_s",
    ),
    "a request that is given up leaves tasks behind": (
        "pipeline.py",
        "remove(at(w, k), row, sent_s)",
        "pass",
    ),
    "tasks meet before all are there": (
        "pipeline.py",
        "return tasks == 0 and done > 0",
        "return done > 0",
    ),
    "accuracies of a stage add up": (
        "pipeline.py",
        "product *= place.accuracy[k] / place.done[k]",
        "product *= place.accuracy[k]",
    ),
    "batches of any variant are switches": (
        "batching.py",
        "stage.switches += replica.variant != stage.last_variant",
        "stage.switches += 1",
    ),
    "tasks count for the variant in force": (
        "batching.py",
        "stage.answered_by[replica.variant] += replica.batch_size",
        "stage.answered_by[stage.variant] += replica.batch_size",
    ),
    "the cores of other stages are free": (
        "step.py",
        "room -= w.stages[k].cores * w.stages[k].replicas",
        "room -= 0",
    ),
    "dropped requests are no violations": (
        "measure.py",
        "violations = metrics.late + metrics.dropped + metrics.failed",
        "violations = metrics.late + metrics.failed",
    ),
}
"""By name: file of the core, what stands there once, and what it becomes."""


def survives(file: str, old: str, new: str) -> bool:
    """Return whether the tests pass all the same."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, Path(folder, name), ignore=ignore)
            else:
                shutil.copy(ROOT / name, folder)
        path = Path(folder, "sponge_env", "core", file)
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{file}: {old!r} stands there {text.count(old)} times, not once")
        path.write_text(text.replace(old, new))
        paths = [f"tests/{name}.py" for name in TESTS]
        return not subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", *paths],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            stdout=subprocess.DEVNULL,
        ).returncode


def main(names: list[str]) -> int:
    """Run the command."""
    survivors = 0
    for name in names or MUTATIONS:
        found = survives(*MUTATIONS[name])
        survivors += found
        sys.stdout.write(f"{'SURVIVES' if found else 'noticed ':8}  {name}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{survivors} survive\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
