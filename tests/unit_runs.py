"""Units run into folders, without a command line."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sponge_env.run.executor import Results, Work, attempt
from sponge_env.run.store import RunStore
from sponge_env.run.unit import Unit, run_unit


class Inline:
    """Runs tasks here, sent and received as :class:`sponge_env.run.executor.Processes` does."""

    def __init__(self, count: int) -> None: ...

    def run(self, work: Work, tasks: Sequence[Any]) -> Results[Any]:
        for task in tasks:
            yield task, attempt(*pickle.loads(pickle.dumps((work, task))))


IDENTITY = {"suite": "s", "seeds": 2, "cells": "abc", "code": "def"}


def result(unit: Unit, path: Path, **options: Any) -> dict[str, Any]:
    """Run a unit into a folder, made if need be; return what is kept of it."""
    with RunStore.open(path, IDENTITY) as store:
        run_unit(unit, store, **options)
        return store.kept(unit)
