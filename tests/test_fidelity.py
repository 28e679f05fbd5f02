"""The fidelity comparison, on made-up live workers and, once, on the real one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from control_groups import groups_of
from machine import needs_cgroup, needs_two_cpus
from scenarios import QUOTA_PROFILE

import sponge_env.fidelity.__main__ as command
from baselines.static import Static
from sponge_env import cli
from sponge_env.config import Arrivals, Network
from sponge_env.factory import simulated_worker
from sponge_env.fidelity.comparison import QUANTITIES, Row, compare
from sponge_env.fidelity.replay import MeasuredWork
from sponge_env.fidelity.report import section, table, write_results
from sponge_env.fidelity.trial import RecordingWorker, Subject, Trial
from sponge_env.interfaces import Batch, Completion, Request, SystemSpec
from sponge_env.metrics import EpisodeMetrics
from sponge_env.profile import load_profile, save_profile
from sponge_env.scenario import Scenario
from sponge_env.workers.bucket import QuotaBucket
from sponge_env.workers.simulated import SimulatedWorker

SCENARIO = Scenario(
    name="short-local",
    profile="local",
    duration_s=20.0,
    arrivals=Arrivals(kind="poisson", load=0.4),
    network=Network(trace="4g", payload_bytes=300_000.0),
)
