"""The base of the project's controllers: options with limits, and the machine's cores."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
from views import make_spec, make_view, with_first

from sponge_env.control.base import BaseController, Options, option
from sponge_env.control.split import stage_view
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.metrics import IntervalMetrics, StageMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Some(Options):
    count: int = option(2, at_least=1)
    cores: int | None = option(None, at_least=1)
    price: float = option(1.0, at_least=0)
    period_s: float = option(1.0, above=0)
    share: float = option(0.5, above=0, at_most=1)
    guard: float = option(0.5, above=0, below=1)
    depth: int = option(1, at_least=0, at_most=5)
    free: float = 7.0


class Fixed(BaseController):
    config: Some

    def allocate(self, spec, view):
        return Allocation(self.config.count, 1, spec.first.replicas_max)


@pytest.mark.parametrize(
    ("options", "rule"), [({"count": 0}, "count must be at least 1, not 0"),
     ({"price": math.inf}, "price must be a number of at least 0, not inf"),
     ({"period_s": math.nan}, "period_s must be a number above 0, not nan"),
     ({"share": 1.5}, r"share must be above 0 and at most 1, not 1\.5"),
     ({"guard": 1.0}, r"guard must be above 0 and below 1, not 1\.0"),
     ({"depth": 6}, "depth must be between 0 and 5, not 6"),
     ({"count": 1.5}, r"count must be a whole number, not 1\.5")],
)  # fmt: skip
def test_an_option_out_of_its_limits_is_named(options, rule):
    with pytest.raises(ConfigError, match=rule):
        Fixed(**options)


def test_options_may_lie_on_their_limits_or_be_left_out():
    config = Fixed(count=1, price=0.0, share=1.0, depth=5, free=math.inf).config
    assert config == Some(count=1, price=0.0, share=1.0, depth=5, free=math.inf)
    assert config.cores is None


def test_no_more_cores_are_asked_for_than_the_machine_has():
    controller = Fixed(count=4)
    for total, replicas in ((64, 8), (15, 3), (4, 1)):
        controller.reset(dataclasses.replace(make_spec(replicas_max=8), nodes=(total,)), 0)
        assert controller.decide(make_view()) == Allocation(4, 1, replicas)


def test_the_part_of_a_single_stage_sees_the_late_answers_of_the_system():
    last = IntervalMetrics(on_time=5, late=3)
    view = with_first(make_view(last=last), last=StageMetrics(answered=8))
    assert stage_view(view, make_spec(), 0, 1.0, 0.0).last == last
