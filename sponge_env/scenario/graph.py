"""How stages follow each other."""

from collections.abc import Sequence

from sponge_env.errors import ConfigError, unknown
from sponge_env.scenario.config import MAX_STAGES, Stage
from sponge_env.scenario.option import require


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages of one name, and such as follow what does not come before them."""
    # The first in the list is where requests enter, and every other follows some before it: so
    # there is no cycle, and none that nothing leads to. In a set of models none follows another.
    names = [stage.name for stage in stages]
    require(len(set(names)) == len(names), "stages", names, "of different names")
    require(len(names) <= MAX_STAGES, "stages", names, f"at most {MAX_STAGES}")
    for at, stage in enumerate(stages):
        key, after = f"stages.{stage.name}.after", stage.after
        for name in after or ():
            if name not in names:
                raise ConfigError(unknown(f"stage in {key}", name, names))
            rule = f"the name of a stage listed before {stage.name!r}, so that none follows itself"
            require(name in names[:at], key, name, rule)
        require(at > 0 or not after, key, after, "left out: requests enter at the first stage")
        rule = "[] in all stages after the first or in none, and without fan_out where it is"
        apart = (at == 0 or after == ()) and stage.tasks == (0.0, 1.0)
        require(apart or not is_set(stages), key, after, rule)


def is_set(stages: Sequence[Stage]) -> bool:
    """Return whether stages are models with requests of their own, and no pipeline."""
    return any(stage.after == () for stage in stages[1:])


def predecessors(stages: Sequence[Stage]) -> list[tuple[int, ...]]:
    """Return which stages lead to each, by their places in the list."""
    names = [stage.name for stage in stages]
    return [
        tuple(range(at)[-1:] if stage.after is None else map(names.index, stage.after))
        for at, stage in enumerate(stages)
    ]


def ancestors(stages: Sequence[Stage]) -> list[frozenset[int]]:
    """Return which stages come before each in any way."""
    found: list[frozenset[int]] = []
    for leads in predecessors(stages):
        found.append(frozenset(leads).union(*(found[k] for k in leads)))
    return found


def longest_path(stages: Sequence[Stage], lengths: Sequence[float]) -> float:
    """Return the length of the longest path, of what the stages add to those through them."""
    ends: list[float] = []
    for leads, own in zip(predecessors(stages), lengths, strict=True):
        ends.append(max((ends[k] for k in leads), default=0.0) + own)
    return max(ends)


def mean_tasks(stages: Sequence[Stage]) -> list[float]:
    """Return how many tasks a request has in each stage on average; where several meet, one."""
    tasks: list[float] = []
    for leads in predecessors(stages):
        tasks.append(tasks[leads[0]] * stages[leads[0]].mean_tasks if len(leads) == 1 else 1.0)
    return tasks


def always_passed(stages: Sequence[Stage]) -> list[bool]:
    """Return which stages every request goes through."""
    passed: list[bool] = []
    for leads in predecessors(stages):
        certain = (passed[k] and (len(leads) > 1 or stages[k].tasks[0] == 0) for k in leads)
        passed.append(not leads or any(certain))
    return passed
