"""Latency profiles: what was measured of a model on a host, stored as JSON.

A profile holds the measured grid of saturated batch latencies, the fit of l(b, c) to it,
how single runs scatter, and what the simulator needs to repeat the worker: its service
model and cold start. ``python -m sponge_env calibrate`` writes one for this machine; the
reference profiles ``yolov5s`` and ``resnet18`` ship with the package.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import ProfileError, unknown
from sponge_env.latency import (
    LONGEST_S,
    MOST_LOST,
    FitError,
    LatencyModel,
    MeasuredLatency,
    QuotaService,
)
from sponge_env.scenario.config import MAX_LIMIT
from sponge_env.scenario.toml import from_mapping
from sponge_env.utils.files import cache_dir, parsed, read_text, write_json
from sponge_env.utils.installation import program

MOST_OFF = 1000  # Times its cell's latency that a run can be off, or a measured latency the fit's
FORMAT = 1  # Version of the JSON layout
PROFILE_DIR = Path(__file__).parents[1] / "profiles"  # Profiles that ship with the package
POOR_FIT = 0.15  # Mean absolute relative error of a fit from which the grid takes its place
REMEDY = "plans use the measured table; sponge calibrate measures it anew, best on an idle machine"


@dataclass(frozen=True, slots=True)
class Sample:
    """Raw measurements of one grid cell."""

    batch: int
    cores: int
    latency_s: tuple[float, ...]
    cpu_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model beside how long it takes; no result depends on it."""

    load_cpu_s: float = 0.0  # CPU time of a replica's process until it is ready
    memory_bytes: int = 0  # What the process then holds for itself
    tasks: tuple[float, ...] = ()  # Shares of the samples whose answers lead to 0, 1, 2, ... tasks


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one host."""

    name: str
    model: str  # The model that was measured: a known name or a path to an ONNX file
    source: str  # Where the numbers come from
    statistic: str  # What a cell of the grid is of the runs in it: mean, p95 or p99
    batches: tuple[int, ...]
    cores: tuple[int, ...]
    latency_s: tuple[tuple[float, ...], ...]
    """Saturated batch latency, one row per batch size, one column per core count."""
    latency: LatencyModel
    fit_error: FitError
    noise_quantiles: tuple[float, ...]
    """Relative deviation of single runs from their cell, at evenly spaced probabilities."""
    cold_start_s: float  # Time from asking for a replica until it serves
    core_unit: float = 1.0  # Physical cores in one core unit
    quota: QuotaService | None = None  # Token-bucket service; None for a worker on whole cores
    limiter: str = "none"  # CPU limiter in force while measuring
    host: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    samples: tuple[Sample, ...] = ()
    facts: Facts = field(default_factory=Facts)

    def __post_init__(self) -> None:
        if not (0 <= self.cold_start_s <= LONGEST_S and 0 < self.core_unit <= MAX_LIMIT):
            raise self._error(
                f"needs a core unit above 0 and at most {MAX_LIMIT}, and a cold start of at least "
                "0 and at most an hour"
            )
        if self.quota and self.quota.resume_s > MOST_LOST * self.core_unit * self.quota.period_s:
            raise self._error(
                f"loses more than {MOST_LOST:.0%} of a core unit's quota to pauses; "
                "calibrate again with larger units"
            )
        for name in ("noise_quantiles", "latency.residual_quantiles"):
            values = attrgetter(name)(self)
            if not values or not np.all(np.abs(values) <= MOST_OFF):
                raise self._error(f"needs {name} of at most {MOST_OFF}, which may be (0,)")
        fit = self.latency
        if max(map(abs, (fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s))) > LONGEST_S:
            raise self._error("has a coefficient of the latency above an hour")
        for each in self.samples:
            if not each.latency_s or not all(0 < value <= LONGEST_S for value in each.latency_s):
                raise self._error("has samples without latencies of up to an hour")
        for name in ("batches", "cores"):
            values = getattr(self, name)
            ascending = sorted({*values}) == list(values)
            if not values or values[0] < 1 or values[-1] > MAX_LIMIT or not ascending:
                raise self._error(f"needs {name} from 1 to {MAX_LIMIT}, ascending")
        shape = len(self.batches), len(self.cores)
        if [len(row) for row in self.latency_s] != [shape[1]] * shape[0]:
            raise self._error(f"has a latency grid that is not of shape {shape}")
        grid = np.array(self.latency_s)
        if not np.all((grid > 0) & (grid <= LONGEST_S)):
            raise self._error("has a measured latency that is not positive, or above an hour")

    def _error(self, reason: str) -> ProfileError:
        return ProfileError(f"profile {self.name!r} {reason}")

    def scaled(self, scale: float) -> "Profile":
        """Return the same model where all batches take ``scale`` times as long."""
        if scale == 1:
            return self
        if np.max(self.latency_s) * scale > LONGEST_S:
            raise self._error(f"takes more than an hour with simulation.service_scale = {scale:g}")
        quota = self.quota
        return replace(
            self, latency=self.latency.scaled(scale),
            latency_s=tuple(tuple(cell * scale for cell in row) for row in self.latency_s),
            quota=quota and replace(quota, work_s=tuple(each * scale for each in quota.work_s)),
        )  # fmt: skip

    @property
    def poor_fit(self) -> bool:
        """Whether the fit is far off, or so far that it is not positive."""
        fitted_s = self.latency.predict_s(np.array(self.batches)[:, None], np.array(self.cores))
        return self.fit_error.mape > POOR_FIT or float(fitted_s.min()) <= 0

    @property
    def planned(self) -> LatencyModel:
        """The latencies that controllers plan with: the fit, or what was measured."""
        if not self.poor_fit:
            return self.latency
        return self._grid(self.batches, self.cores, self.latency_s)

    def measured(self, batch_max: int, cores_max: int) -> MeasuredLatency:
        """What batches take, by measurement where there is one; see :meth:`service_table_s`."""
        table_s = self.service_table_s(batch_max, cores_max).tolist()
        sizes, cores = range(1, batch_max + 1), range(1, cores_max + 1)
        return self._grid(tuple(sizes), tuple(cores), tuple(map(tuple, table_s)))

    def _grid(
        self, sizes: tuple[int, ...], cores: tuple[int, ...], table_s: tuple[tuple[float, ...], ...]
    ) -> MeasuredLatency:
        names = ("gamma_s", "delta_s", "epsilon_s", "eta_s")
        return MeasuredLatency(
            **{name: max(0.0, getattr(self.latency, name)) for name in names},
            residual_quantiles=self.noise_quantiles, batches=sizes, cores=cores, latency_s=table_s,
        )  # fmt: skip

    def service_table_s(self, batch_max: int, cores_max: int) -> FloatArray:
        """(batch_max, cores_max) seconds that the simulator serves with: measured, else planned."""
        table = self.planned.table_s(batch_max, cores_max).copy()
        batches, cores = np.array(self.batches), np.array(self.cores)
        rows, columns = batches <= batch_max, cores <= cores_max
        measured = np.array(self.latency_s)[np.ix_(rows, columns)]
        table[np.ix_(batches[rows] - 1, cores[columns] - 1)] = measured
        return table

    def work_table_s(self, batch_max: int) -> FloatArray:
        """(batch_max,) CPU seconds of batches; a ``ProfileError`` if not measured under a quota."""
        # It is linear beyond the largest batch that was measured.
        if self.quota is None:
            raise self._error("was not measured under a CPU quota")
        work_s = np.asarray(self.quota.work_s, dtype=np.float64)
        slope_s = float(work_s[-1] - work_s[0]) / max(1, len(work_s) - 1)
        beyond = np.arange(1, max(0, batch_max - len(work_s)) + 1)
        return np.concatenate([work_s, work_s[-1] + slope_s * beyond])[:batch_max]

    def fastest_s(self, cores_max: int) -> float:
        """Shortest service that a request can get, by the simulator's service model."""
        # Under a quota that is full speed on any cores: an idle replica has tokens.
        if self.quota is None:
            return float(self.service_table_s(1, cores_max).min())
        quota = self.quota
        return quota.dispatch_s + quota.dispatch_request_s + quota.work_s[0]

    def capacity_rps(self, batch_max: int, cores_max: int) -> float:
        """Largest throughput max over b of b / l(b, cores_max), in requests per second."""
        latency_s = self.service_table_s(batch_max, cores_max)[:, -1]
        return float(np.max(np.arange(1, batch_max + 1) / latency_s))

    def resolve_service(
        self, wanted: Literal["auto", "profile", "quota"]
    ) -> Literal["profile", "quota"]:
        """Choose the simulator's service model; ``quota`` only where there is quota data."""
        if wanted == "auto":
            return "quota" if self.quota is not None else "profile"
        if wanted == "quota" and self.quota is None:
            raise self._error("was not measured under a CPU quota; use the service model 'profile'")
        return wanted


LOCAL = "local"  # Profile of this machine; ``local:MODEL`` of a model but the first one
LOCAL_MODEL = "efficientnet-lite0"


def local_profile_path(model: str = LOCAL_MODEL) -> Path:
    """Return where the calibration of a model on this machine is kept."""
    name = Path(model).stem if model.endswith(".onnx") else model.replace(":", "-")
    stem = LOCAL if model == LOCAL_MODEL else f"{LOCAL}-{name}"
    return cache_dir() / "profiles" / f"{stem}.json"


def local_model(profile: str) -> str | None:
    """Return the model of ``local`` or ``local:MODEL``; None if it is a profile from elsewhere."""
    name, _, model = profile.partition(":")
    return (model or LOCAL_MODEL) if name == LOCAL else None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile as JSON, whole or not at all."""
    write_json(path, {"format": FORMAT, **asdict(profile)})


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a shipped profile, one of this machine (``local``, ``local:MODEL``), or a file."""
    path, model = Path(name_or_path), local_model(str(name_or_path))
    if model is not None:
        path = local_profile_path(model)
        if not path.exists():
            option = f" --model {model}" * (model != LOCAL_MODEL)
            command = f"{program('calibrate')}{option}, or all models of a scenario with --scenario"
            raise ProfileError(f"{model} was not measured on this machine yet; run: {command}")
    elif path.suffix != ".json":
        folders = local_profile_path().parent, PROFILE_DIR
        named = {file.stem: file for folder in folders for file in folder.glob("*.json")}
        if str(path) not in named:
            if path.is_file():
                raise ProfileError(f"{path} is not a latency profile, whose name ends in .json")
            raise ProfileError(unknown("profile", str(path), named))
        path = named[str(path)]
    try:
        read = partial(json.loads, parse_float=_finite, parse_constant=_finite)
        data = parsed(read, read_text(path))
        if data.pop("format") != FORMAT:
            raise ProfileError(f"a profile must have format {FORMAT}; calibrate again")
        (data.get("facts") or {}).pop("accuracy", None)  # which nothing read, until version 0.2
        profile = from_mapping(Profile, data)
    except FileNotFoundError:
        raise ProfileError(f"there is no profile file {str(path)!r}") from None
    except ProfileError:
        raise
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is not a latency profile: {error}") from error
    # Files of one name in different folders share a profile.
    if model is not None and profile.model not in (model, str(Path(model).resolve())):
        raise ProfileError(f"{path} is of {profile.model}, not of {model}; calibrate that anew")
    return profile


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"it has the number {text}")
