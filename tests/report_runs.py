"""Folders of runs, made up: a report's input without running anything."""

import json

import numpy as np

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, summary, to_columns
from sponge_env.run.rollout import Run
from sponge_env.run.store import FORMAT
from sponge_env.run.unit import interval_columns, write_table

COLD, WARM = ("paper-300kb", "yolov5s", "cold"), ("flash-crowd", "yolov5s", "warm")
OFFERED = 1000
DURATION_S = 120.0
WARMUP_S = 30.0


def write_suite(path, agents, cells=(COLD, WARM), bounds=None, arrangement=None):
    """Write a suite's folder, by agents' violations of each seed and mean cores, and bounds'."""
    shown = {"cells": cells, **(arrangement or {})}
    write(path / "run.json", {"format": FORMAT, "suite": "made-up", "arrangement": shown})
    write(path / "host.json", {"cpu_model": "M", "cpus": 2, "cpus_allowed": 2, "kernel": "Linux"})
    write(path / "versions.json", {"python": "3.11", "numpy": None})
    (path / "command.txt").write_text("python evaluate.py --suite other\npython evaluate.py\n")
    for cell in cells:
        for agent, (violations, cores) in agents.items():
            keep(path, agent, cell, agent_result(agent, cell, violations, cores))
            write_intervals(path, agent, cell, violations[0], cores)
        for name, cores in (bounds or {}).items():
            seeds = len(next(iter(agents.values()))[0])
            keep(path, name, cell, agent_result(name, cell, [0] * seeds, cores))
    return path


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def keep(path, agent, cell, result, **error):
    scenario, profile, start = cell
    head = {"format": FORMAT, "agent": agent, "scenario": scenario, "profile": profile}
    head |= {"start": start, "fingerprint": "", "complete": not error, "error": error or None}
    write(path / "results" / agent / f"{'+'.join(cell)}.json", {**head, **result})


def agent_result(agent, cell, violations, cores):
    scenario, profile, start = cell
    head = {"agent": agent, "scenario": scenario, "profile": profile, "start": start}
    episodes = [
        EpisodeMetrics(
            **head, backend="sim", seed=seed, duration_s=DURATION_S, offered=OFFERED,
            violations=count,
            **dict.fromkeys(("violation_rate", "avoidable_violation_rate"), count / OFFERED),
            mean_cores=cores, core_seconds=cores * DURATION_S, latency_p99_s=0.5 + seed / 100,
            decision_p50_s=1e-5, decision_p99_s=1e-4,
        )
        for seed, count in enumerate(violations)
    ]  # fmt: skip
    return {"episodes": [summary(episode) for episode in episodes]}


def write_intervals(path, agent, cell, violations, cores):
    """Write intervals of the first seed whose violations all fall into the third second."""
    scenario, profile, start = cell
    end_s = DURATION_S + (WARMUP_S if start == "warm" else 0.0)
    intervals = [
        IntervalMetrics(
            time_s=time_s, cores=cores,
            **dict.fromkeys(("violations", "avoidable_violations"), violations * (time_s == 3.0)),
            **dict.fromkeys(("offered", "batch", "replicas_ready", "queued"), 1),
            **dict.fromkeys(("latency_p99_s", "delay_mean_s", "bandwidth_bytes_per_s"), 1.0),
        )
        for time_s in np.arange(1.0, end_s + 1.0).tolist()
    ]  # fmt: skip
    run = Run(agent, scenario, "sim", 0, profile, start)
    file = path / "intervals" / agent / f"{'+'.join(cell)}-seed0.parquet"
    write_table(file, interval_columns(run, to_columns(intervals)))
