"""By when a request has to be answered, from what clients say."""

import dataclasses
import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.serve.wire import deadlines
from sponge_env.serve.wire.outcomes import WireError

NOW_MS = 1.7e12
AT = deadlines.Arrival(began_s=999.9, arrived_s=1000.0, unix_s=NOW_MS / 1000, default_slo_s=2.0)


def when(parameters=None, arrival=AT, **headers):
    said = {f"x-{name.replace('_', '-')}".encode(): str(v).encode() for name, v in headers.items()}
    found = deadlines.request_deadline(parameters or {}, said, arrival)
    return deadlines.Deadline(round(found.sent_s, 6), round(found.due_s, 6), found.clamped)


GRPC, PATIENT = (dataclasses.replace(AT, grpc_remaining_s=s) for s in (0.7, 1e9))
DUE = {"deadline_ms": NOW_MS + 500}
ODD, SENT = (0, -5, math.nan, math.inf, -math.inf, 1e300), {"sent_at_ms": NOW_MS - 250}


@pytest.mark.parametrize(
    ("parameters", "headers", "arrival", "deadline"),
    [({}, {}, AT, (999.9, 1001.9)),  # the default, from the first byte on
     ({"slo_ms": 300}, {}, AT, (999.9, 1000.2)),
     ({"slo_ms": 300} | SENT, {}, AT, (999.75, 1000.05)),
     ({}, {"slo_ms": 300} | SENT, AT, (999.75, 1000.05)),
     ({"slo_ms": 300}, {"slo_ms": 900}, AT, (999.9, 1000.2)),  # a parameter goes first
     ({"timeout": 400_000, "slo_ms": 300}, DUE, GRPC, (999.9, 1000.2)),
     ({"timeout": 400_000}, DUE, GRPC, (999.9, 1000.5)),
     ({"timeout": 400_000}, {}, GRPC, (999.9, 1000.4)), ({}, {}, GRPC, (999.9, 1000.7)),
     (SENT, {}, AT, (999.75, 1001.75)),  # it is known when it was sent
     (SENT, DUE, AT, (999.75, 1000.5)), (SENT | {"timeout": 400_000}, {}, AT, (999.75, 1000.4)),
     ({"timeout": 0}, {}, AT, (999.9, 1001.9)),  # Triton: none
     ({"slo_ms": 100, "sent_at_ms": NOW_MS - 5000}, {}, AT, (995.0, 995.1)),  # expired
     ({}, {"deadline_ms": NOW_MS - 1000}, AT, (999.9, 999.0)),
     ({"slo_ms": 300, "sent_at_ms": NOW_MS - 100 + deadlines.CLOCK_SLACK_S * 900}, {}, AT,
      (999.9, 1000.2)),
     ({"slo_ms": 1e300}, {}, AT, (999.9, 999.9 + deadlines.MAX_SLO_S)),
     ({"timeout": 2**63}, {}, AT, (999.9, 1000.0 + deadlines.MAX_SLO_S)),
     ({}, {}, PATIENT, (999.9, 1000.0 + deadlines.MAX_SLO_S)),
     # neither a wrong clock nor an impossible deadline counts
     *(({"slo_ms": 300, "sent_at_ms": sent}, {}, AT, (999.9, 1000.2, True))
       for sent in (NOW_MS + 1000, NOW_MS - (deadlines.MAX_AGE_S + 1) * 1000, *ODD)),
     *(({}, {"deadline_ms": due}, AT, (999.9, 1001.9, True))
       for due in (NOW_MS - 61_000, NOW_MS + 3.7e6, *ODD))],
)  # fmt: skip
def test_the_deadline(parameters, headers, arrival, deadline):
    assert when(parameters, arrival, **headers) == deadlines.Deadline(*deadline)


NO_NUMBERS = ("soon", "", True, [], {}, "1,5")
NOT_POSITIVE = (-1, math.nan, math.inf, "nan", "-3", b"-3")


@pytest.mark.parametrize(
    ("name", "value"), [*product(("slo_ms", "sent_at_ms", "timeout"), NO_NUMBERS), ("slo_ms", 0),
     *product(("slo_ms", "timeout"), NOT_POSITIVE)],
)  # fmt: skip
def test_what_is_no_number_or_no_span_is_refused(name, value):
    with pytest.raises(WireError, match=r"must be a .*number, not [^b]"):
        when({"slo_ms": 1, name: value} if name != "timeout" else {name: value})


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(["slo_ms", "sent_at_ms", "deadline_ms", "timeout"])
HEADERS = st.sampled_from([b"x-slo-ms", b"x-sent-at-ms", b"x-deadline-ms"])


@given(
    parameters=st.dictionaries(NAMES, VALUES),
    headers=st.dictionaries(HEADERS, st.binary(max_size=12)),
    remaining_s=st.none() | st.floats(allow_nan=False),
)
def test_whatever_is_said_the_deadline_is_a_time(parameters, headers, remaining_s):
    arrival = deadlines.Arrival(999.9, 1000.0, NOW_MS / 1000, 2.0, remaining_s)
    try:
        found = deadlines.request_deadline(parameters, headers, arrival)
    except WireError:
        return
    assert 999.9 - deadlines.MAX_AGE_S <= found.sent_s <= 999.9
    if remaining_s is None or remaining_s > -deadlines.MAX_AGE_S:
        assert -deadlines.MAX_AGE_S - 1 <= found.due_s - 1000.0 <= deadlines.MAX_SLO_S + 1e-6
