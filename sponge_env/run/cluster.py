"""Tasks on a Ray cluster: one CPU each, on whatever node has one free.

Ray runs units of suites and whole trainings, never requests. A node needs this version of the
project and of the packages that results depend on. Files come back as bytes, and are written here.
"""

import argparse
import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sponge_env.errors import ConfigError
from sponge_env.run.executor import Executor, Failure, Processes, Results, Task, Work, attempt
from sponge_env.run.store import RunStore, code_fingerprint
from sponge_env.run.unit import Unit
from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.utils import installation
from sponge_env.utils.files import read_all, write_all

RETRIES = 2  # How often a task is tried again when its node dies
_ANSWER_S = 5.0  # How long a cluster's head may take to accept a connection
_CHECK_S = 0.2  # Interval of checks for an interrupt while all tasks run
_END_S = 5.0  # How long tasks that are cancelled may take to remove their files


@dataclass(frozen=True, slots=True)
class Cluster:
    """Runs tasks on a cluster, as :class:`~sponge_env.run.executor.Processes` does here."""

    address: str = ""  # ``host:port`` of the cluster's head; a cluster on this machine if left out

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with its result or failure, in the order in which they end.

        Raises ``ConfigError`` if there is no cluster, or a node has another version.
        """
        ray = _join(self.address)
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_attempt_typed)
        shared = ray.put((work, installation.typed()))
        running = {remote.remote(shared, task, _mark(task)): task for task in tasks}
        try:
            while running:
                for ended in ray.wait(list(running), timeout=_CHECK_S)[0]:
                    task = running.pop(ended)
                    try:
                        result = ray.get(ended)
                    except ray.exceptions.RayError as error:
                        result = Failure("ProcessDied", str(error).partition("\n")[0])
                    yield task, result
        finally:
            for force in (False, True) if running else ():
                for left in running:
                    ray.cancel(left, force=force)
                ray.wait([*running], num_returns=len(running), timeout=_END_S)


def _mark(task: Any) -> str:
    return str(task.fingerprint()) if hasattr(task, "fingerprint") else ""


def executor_of(arguments: argparse.Namespace) -> Executor:
    """Return the executor that a command line asks for, see :func:`sponge_env.cli.add_workers`."""
    if arguments.ray is None:
        return Processes(arguments.jobs or len(os.sched_getaffinity(0)))
    if arguments.jobs:
        raise ConfigError("--jobs does not go with --ray, which runs a task on each CPU")
    return Cluster(arguments.ray)


def _attempt_typed(shared: tuple[Work, Sequence[str] | None], task: Any, fingerprint: str) -> Any:
    work, typed = shared
    if attempt(_mark, task) != fingerprint:  # or the file is missing
        text = "a trace, policy or controller that it names is another file on that node"
        return Failure("ConfigError", f"{text}; copy the file to every node")
    with installation.typing(typed):
        return attempt(work, task)


class _Order(NamedTuple):
    unit: Unit
    kept: bytes  # What an earlier run kept of it; empty if nothing

    def fingerprint(self) -> str:
        return self.unit.fingerprint()


def run_units(
    cluster: Cluster, store: RunStore, units: Sequence[Unit], run_unit: Callable[..., None]
) -> Results[Unit]:
    """Run units on a cluster, each with a store there; write what they leave into the store here.

    Yield each with None, or with its :class:`~sponge_env.run.executor.Failure`.
    """
    kept = [store.file("results", unit, ".json") for unit in units]
    orders = [*map(_Order, units, (f.read_bytes() if f.exists() else b"" for f in kept))]
    with closing(cluster.run(partial(_run_order, run_unit), orders)) as results:
        for order, result in results:
            failure = result
            if not isinstance(result, Failure):
                files, failure = result
                write_all(store.path, files)
            yield order.unit, failure


def _run_order(
    run_unit: Callable[..., None], order: _Order
) -> tuple[dict[str, bytes], Failure | None]:
    """Run a unit on a node; return its files by their names in the run, and why it failed."""
    with TemporaryDirectory(prefix="sponge-") as folder:
        store = RunStore(Path(folder))
        if order.kept:
            path = store.file("results", order.unit, ".json")
            path.parent.mkdir(parents=True)
            path.write_bytes(order.kept)
        failure = attempt(partial(run_unit, store=store), order.unit)
        return read_all(store.path), failure


def _join(address: str) -> Any:
    """Return Ray, connected to a cluster each of whose nodes was prepared."""
    installation.require_extra("ray", "a cluster")
    if address and Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as ``ray start`` does
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    options |= {} if address else {"include_dashboard": False}
    options["runtime_env"] = {"env_vars": installation.ONE_THREAD}
    ended_by = signal.getsignal(signal.SIGTERM)
    try:
        if address:  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"no Ray at {address!r} (HOST:PORT of its head): {reason}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ended_by)  # Ray would end this process at once
    try:
        _prepare_nodes(ray)
    except ConfigError:
        ray.shutdown()
        raise
    return ray


def _prepare_nodes(ray: Any) -> None:
    """Compile the simulator on every node; raise ConfigError if one differs from this machine."""
    on_node: Any = importlib.import_module("ray.util.scheduling_strategies")
    remote, refs = ray.remote(num_cpus=1)(_prepare), {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            here_only = on_node.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = remote.options(scheduling_strategy=here_only).remote(_versions())
            refs[ref] = node["NodeManagerAddress"]
    for ref, name in refs.items():
        try:
            if other := ray.get(ref):
                raise ConfigError(f"node {name} has {other}; install there what this machine has")
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # it has died meanwhile
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"node {name} cannot run sponge-env: {str(error).strip().splitlines()[-1]}"
            ) from error


def _versions() -> dict[str, str | None]:
    return {**installation.describe_versions(), "platform": None, "code": code_fingerprint()}


def _prepare(wanted: dict[str, str | None]) -> str:
    """Compile the simulator on a node; return how its versions differ."""
    found = _versions()
    if other := [name for name in wanted if found[name] != wanted[name]]:
        return ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in other)
    system = SimulatedSystem(replace(load_scenario("paper"), duration_s=1.0), 0)
    system.step(system.spec.initial)
    return ""
