"""Hypothesis strategies for requests."""

from __future__ import annotations

from hypothesis import strategies as st

from sponge_env.interfaces import Request


@st.composite
def request_lists(draw: st.DrawFn, max_size: int = 40) -> list[Request]:
    """Requests ascending by arrival, with budgets from hopeless to generous."""
    gaps = draw(st.lists(st.floats(0, 0.3), max_size=max_size))
    requests = []
    arrival_s = 0.0
    for number, gap in enumerate(gaps):
        arrival_s += gap
        delay_s = draw(st.floats(0, 1.2))
        slo_s = draw(st.sampled_from([0.2, 0.5, 1.0]))
        sent_s = arrival_s - delay_s
        requests.append(Request(number, sent_s, arrival_s, sent_s + slo_s, 1e5))
    return requests
