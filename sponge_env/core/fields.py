"""The observation's fields, each declared once: name, meaning and scale.

:mod:`sponge_env.core.observe` computes them. Another field is a line here and one there.

Everything is scaled to about [0, 1] and clipped to [-CLIP, CLIP]. Times are divided by the SLO.
Request counts are divided by what the system can serve within one SLO on all cores of one replica,
rates by what it can serve per second: the same number means the same pressure on any profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CLIP = 5.0  # Largest absolute value of an observation

BANDWIDTH_SCALE_BYTES_PER_S = 5e6
BUDGET_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
DUE_BINS = 8
TREND_INTERVALS = 5
SPANS_S = (1, 5, 30)
STARTING_SLOTS = 8  # Starting replicas that a joint observation tells apart, the first to serve


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of the observation."""

    name: str
    meaning: str
    scale: str  # What it is divided by


_CAPACITY = "requests that all cores of a replica serve within one SLO"
_RATE = "requests per second that all cores of a replica serve"
_BUDGET = "quantile of the waiting requests' budgets; 1 when none waits"
_DUE = "waiting requests with a budget"
_INTERVAL = "requests that all cores of a replica serve in an interval"
_ACCURACY = "mean accuracy of what ended in it, late and unanswered ones counting 0"

_QUEUE = (
    Field("queue_length", "requests waiting", _CAPACITY),
    *(Field(f"budget_q{int(100 * q)}", f"{q:.0%} {_BUDGET}", "SLO") for q in BUDGET_QUANTILES),
    Field("due_1_of_8", f"{_DUE} below 1/8 of the SLO; overdue ones, too", _CAPACITY),
    *(
        Field(f"due_{i}_of_8", f"{_DUE} from {i - 1}/8 to below {i}/8 of the SLO", _CAPACITY)
        for i in range(2, DUE_BINS)
    ),
    Field("due_8_of_8", f"{_DUE} of at least 7/8 of the SLO", _CAPACITY),
    Field("arrivals_last", "arrival rate of the last interval", _RATE),
    *(
        Field(f"arrivals_{s}s", f"mean arrival rate over {s} s, at most 30 intervals", _RATE)
        for s in SPANS_S
    ),
)
_NETWORK = (
    Field("delay_mean", "mean communication delay of the last interval's arrivals", "SLO"),
    Field("delay_max", "largest communication delay of the last interval's arrivals", "SLO"),
    Field("delay_trend", "last mean delay minus the mean of the five before", "SLO"),
    Field("bandwidth", "bandwidth that the last interval's arrivals saw", "5 MB/s"),
    Field("bandwidth_trend", "last bandwidth minus the mean of the five before", "5 MB/s"),
)
_ALLOCATION = (
    Field("cores", "cores of each replica asked for", "limit"),
    Field("batch", "largest batch asked for", "limit"),
    Field("replicas", "replicas asked for", "limit"),
    Field("replicas_ready", "replicas serving", "limit"),
    Field("running_size", "requests in flight", "largest batch"),
    Field("running_left", "expected time until the last running batch ends", "SLO"),
)
_OUTCOME = (
    Field("on_time", "requests answered in time in the last interval", _INTERVAL),
    Field("late", "requests answered late in it", _INTERVAL),
    Field("dropped", "requests given up in it", _INTERVAL),
)
_USE = (
    Field("utilisation", "share of the held cores that was in use in it", ""),
    Field("throttled_share", "share of the held cores' time stopped by the CPU limit", ""),
)
_STARTING = (
    Field("replicas_starting", "replicas that start cold", "limit"),
    *(
        Field(
            f"ready_in_{slot + 1}",
            f"time until starting replica {slot + 1}, soonest first, serves; 0 if there is none",
            "expected cold start",
        )
        for slot in range(STARTING_SLOTS)
    ),
)

VERTICAL_FIELDS = _QUEUE + _NETWORK + _ALLOCATION + _OUTCOME + _USE
"""What controllers of cores and batch size see, in order."""

JOINT_FIELDS = VERTICAL_FIELDS + _STARTING  # What controllers of replicas see as well

REQUEST_FIELDS = (*_NETWORK, *_OUTCOME, Field("effective_accuracy", _ACCURACY, ""))
"""What controllers of variants and stages see of requests; on the scale of the first stage."""

STAGE_FIELDS: tuple[Field, ...] = (
    *_QUEUE, *_ALLOCATION,
    Field("variant", "model variant asked for", "the last one's number"),
    Field("done", "requests done in the last interval", _INTERVAL),
    Field("given_up", "requests given up here in it", _INTERVAL), *_USE, *_STARTING,
)  # fmt: skip
"""What they see of each stage, after that; its requests are tasks."""

FIELDS = tuple(field.name for field in VERTICAL_FIELDS)
JOINT_NAMES = tuple(field.name for field in JOINT_FIELDS)
"""Names of the vertical and of the joint observation's entries, in order."""

OBS_DIM, JOINT_OBS_DIM = len(FIELDS), len(JOINT_NAMES)


def staged_names(stages: Sequence[str]) -> tuple[str, ...]:
    """Return the names of what controllers of variants and stages see, in order."""
    # Those of a stage begin with its name and a dot.
    own = (f"{stage}.{field.name}" for stage in stages for field in STAGE_FIELDS)
    return (*(field.name for field in REQUEST_FIELDS), *own)


# Observations are told apart by their lengths.
assert len(REQUEST_FIELDS) + len(STAGE_FIELDS) > JOINT_OBS_DIM
