from __future__ import annotations

from typing import Any

import pytest
from views import busy_view, make_spec, make_view

from baselines.rules import Static, static_8, static_16
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation


def decide(controller: Static, **spec: Any) -> Allocation:
    controller.reset(make_spec(**spec), seed=0)
    return controller.decide(make_view())


def test_default_is_everything() -> None:
    assert decide(Static(), cores_max=12, batch_max=5) == Allocation(cores=12, batch=5)


def test_named_sizes() -> None:
    assert decide(static_8()) == Allocation(cores=8, batch=16)
    assert decide(static_16()) == Allocation(cores=16, batch=16)


def test_caps_at_the_limits() -> None:
    assert decide(static_16(), cores_max=4) == Allocation(cores=4, batch=16)
    assert decide(Static(cores=2, batch=99)) == Allocation(cores=2, batch=16)


def test_ignores_the_load() -> None:
    controller = Static(cores=3, batch=2)
    controller.reset(make_spec(), seed=0)
    assert controller.decide(busy_view(rate_rps=500)) == Allocation(cores=3, batch=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"cores": 0}, "cores must be"), ({"batch": -1}, "batch must be"), ({"core": 3}, "'cores'")],
)
def test_bad_options(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Static(**options)
