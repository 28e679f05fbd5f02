"""What the files hold: for each thing that is played its hashes, and a few numbers to read."""

import hashlib
from collections import Counter
from math import isfinite, nan

import numpy as np

from . import cells, play


def canonical(values):
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return np.where(np.isnan(array), nan, array).astype(np.float64).tobytes()
    if array.dtype.kind in "iub":
        return array.astype(np.int64).tobytes()
    return "\n".join(map(str, array.ravel().tolist())).encode()


def digest(columns, names):
    sha = hashlib.sha256()
    for name in names:
        data = canonical(columns[name])
        sha.update(f"{name}:{len(data)}:".encode() + data)
    return sha.hexdigest()[:16]


def episode(key, names):
    what = cells.Episode.of(key)
    return _entry(play.play(what), names, cells.LEARNED.get(what.agent))


def _entry(played, names, control):
    tables = {"ledger": played.ledger, "intervals": played.intervals}
    tables["summary"] = {name: np.array([value]) for name, value in played.summary.items()}
    entry = {"initial": played.initial}
    entry |= {name: digest(columns, names[name]) for name, columns in tables.items()}
    if played.observations is not None and control is not None:
        entry["observations"] = digest(played.observations, names[control])
    readable = ("offered", "violations", "core_seconds")
    return entry | {name: played.summary[name] for name in readable}


def sequence(key, names):
    what = cells.Sequence(int(key.split("/")[0]))
    env = play.make_env(what)
    run = _vector if what.vector else _single
    infos = names["vector_infos" if what.vector else "intervals"]
    infos = [name for name in infos if name != "reward"]
    tables = run(env, what, infos)
    env.close()
    entry = {"seeds": np.ravel(tables["seeds"]["seeds"]).tolist()}
    columns = {"observations": names[what.control], "infos": infos, "ends": ["over"]}
    for table in sorted(tables.keys() - {"seeds"}):
        hashed = columns.get(table.removeprefix("final_"), list(tables[table]))
        entry[table] = digest(tables[table], hashed)
    return entry | {"reward": float(np.sum(tables["rewards"]["reward"]))}


def _actions(what, choices):
    """Yield random actions, each of which is kept for two steps in the mean."""
    rng = np.random.default_rng(what.number)
    action = rng.integers(0, choices)
    for _ in range(cells.STEPS):
        if rng.random() < 0.5:
            action = rng.integers(0, choices)
        yield action


def _single(env, what, infos):
    """Step one environment; a new episode of its own choice follows one that is over."""
    observation, info = env.reset(seed=what.number, options={"episode_seed": what.number})
    seen, seeds, masks = [observation], [info["episode_seed"]], [env.unwrapped.action_masks()]
    rewards, over, measured = [], [], []
    for action in _actions(what, env.action_space.nvec):
        observation, reward, _, truncated, info = env.step(action)
        seen.append(observation)
        rewards.append(reward)
        over.append(truncated)
        measured.append(info)
        if truncated:
            observation, info = env.reset()
            seen.append(observation)
            seeds.append(info["episode_seed"])
        masks.append(env.unwrapped.action_masks())
    tables = _tables(what, seen, rewards, over, measured, seeds, infos)
    return tables | {"masks": {"allowed": np.array(masks)}}


def _tables(what, seen, rewards, over, measured, seeds, infos):
    return {
        "observations": play.by_field(np.array(seen), what.control),
        "rewards": {"reward": np.array(rewards)}, "ends": {"over": np.array(over)},
        "infos": {name: np.array([one[name] for one in measured]) for name in infos},
        "seeds": {"seeds": np.array(seeds)},
    }  # fmt: skip


def _vector(env, what, infos):
    observations, info = env.reset(seed=what.number)
    seen, seeds, rewards, over = [observations], [info["episode_seed"]], [], []
    measured, last_seen, last_measured, playing = [], [], [], info["episode_seed"]
    for action in _actions(what, np.tile(env.single_action_space.nvec, (cells.VECTOR_ENVS, 1))):
        observations, reward, _, truncated, info = env.step(action)
        seen.append(observations)
        rewards.append(reward)
        over.append(truncated)
        measured.append(_valid(info, infos))
        began, playing = info["episode_seed"] != playing, info["episode_seed"]
        if began.any():
            seeds.append(np.where(began, playing, 0))
        if "final_obs" in info:
            last_seen += [info["final_obs"][i] for i in np.flatnonzero(info["_final_obs"])]
            last_measured.append(_valid(info["final_info"], infos))
    tables = _tables(what, seen, rewards, over, measured, seeds, infos)
    if last_seen:
        tables["final_observations"] = play.by_field(np.array(last_seen), what.control)
        final = {name: np.array([one[name] for one in last_measured]) for name in infos}
        tables["final_infos"] = final
    return tables


def _valid(info, infos):
    valid = {}
    for name in infos:
        values = np.asarray(info[name])
        nothing = nan if values.dtype.kind == "f" else 0
        valid[name] = np.where(info["_" + name], values, nothing)
    return valid


MEASURED = [(1 + 7 * i % 16, 1.05 + 0.2 * (37 * i % 100) / 100) for i in range(400)]
"""Batches that a live worker may have run: sizes, and CPU times relative to the profile's."""


def fidelity(key, names):
    """Play the simulated rows of a fidelity run; its summaries are kept in full."""
    entry = {}
    for kind, played in play.fidelity(key, MEASURED).items():
        row = {name: played.summary[name] for name in names["summary"]}
        row = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
        entry[kind] = {**_entry(played, names, None), "row": row}
    return entry


def clairvoyant(key, names):
    sides, schedule = play.clairvoyant(*cells.BOUNDS[key])
    return {**sides, "schedule": digest(schedule, sorted(schedule))}


MAKERS = {"episodes": episode, "sequences": sequence, "fidelity": fidelity, "bounds": clairvoyant}
"""What makes an entry, by the name of its file."""


def keys():
    return {
        "episodes": [one.key for one in cells.episodes(play.registered())],
        "sequences": [cells.Sequence(number).key for number in range(cells.SEQUENCES)],
        "fidelity": list(cells.FIDELITY), "bounds": list(cells.BOUNDS),
    }  # fmt: skip


def subset(recorded):
    # Of each cell the two agents seen least so far, one of each start where there are two and four
    # of each where there are stages; the cheapest bound; and of the other files every third entry.
    starts = {}
    for key in recorded["episodes"]:
        one = cells.Episode.of(key)
        starts.setdefault((one.cell, one.start), []).append(key)
    chosen, seen = [], Counter()
    for (cell, _), keys in starts.items():
        where = cells.CELLS[cell]
        for _ in range(4 if where.stages else 2 // len(where.starts)):
            rest = (key for key in keys if key not in chosen)
            chosen.append(min(rest, key=lambda key: seen[cells.Episode.of(key).agent]))
            seen[cells.Episode.of(chosen[-1]).agent] += 1
    others = {name: keys[::3] for name, keys in recorded.items() if name != "episodes"}
    return {"episodes": chosen, **others, "bounds": ["expired-classes/joint"]}
