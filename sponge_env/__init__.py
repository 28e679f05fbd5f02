"""Control of a CPU-limited inference server under dynamic SLOs.

Importing the package registers its environments with Gymnasium: ``Sponge-v0`` (simulated) and
``SpongeLive-v0`` (real worker) choose cores and batch size; ``SpongeJoint-v0`` and
``SpongeJointLive-v0`` the number of replicas as well; ``SpongeVariants-v0`` the model variant
instead; ``SpongePipeline-v0`` all of that for each of several stages. ``SpongeDiscrete-v0`` and
``SpongeContinuous-v0`` are ``Sponge-v0`` with one whole number, or real numbers, as action.

The names in ``__all__`` are what experiments and controllers are made of. They are imported when
first used, so that ``import sponge_env`` stays quick.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sponge_env.control.base import BaseController as BaseController
    from sponge_env.env.factory import make_system as make_system
    from sponge_env.errors import SpongeError as SpongeError
    from sponge_env.interfaces import Allocation as Allocation
    from sponge_env.interfaces import Controller as Controller
    from sponge_env.interfaces import StageAllocation as StageAllocation
    from sponge_env.interfaces import StageSpec as StageSpec
    from sponge_env.interfaces import StageView as StageView
    from sponge_env.interfaces import SystemSpec as SystemSpec
    from sponge_env.interfaces import SystemView as SystemView
    from sponge_env.models.model import Model as Model
    from sponge_env.scenario.option import Options as Options
    from sponge_env.scenario.option import option as option
    from sponge_env.scenario.profile import Profile as Profile
    from sponge_env.scenario.scenario import Scenario as Scenario
    from sponge_env.scenario.scenario import load_scenario as load_scenario

__version__ = "1.0.0"

_HOMES = {
    "control.base": "BaseController", "env.factory": "make_system", "errors": "SpongeError",
    "interfaces": "Allocation Controller StageAllocation StageSpec StageView SystemSpec SystemView",
    "models.model": "Model", "scenario.option": "Options option", "scenario.profile": "Profile",
    "scenario.scenario": "Scenario load_scenario",
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # the same names, once


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sponge_env' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sponge_env.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    import gymnasium

    single, vector = "sponge_env.env.single:SpongeEnv", "sponge_env.env.vector:SpongeVectorEnv"
    live = {"backend": "live", "scenario": "local"}

    for name, arguments in {
        "Sponge-v0": {},
        "SpongeJoint-v0": {"control": "joint"},
        "SpongeVariants-v0": {"scenario": "variants", "control": "variants"},
        "SpongePipeline-v0": {"scenario": "pipeline-video", "control": "pipeline"},
    }.items():
        gymnasium.register(name, single, vector_entry_point=vector, kwargs=arguments)
    gymnasium.register("SpongeLive-v0", single, nondeterministic=True, kwargs=live)
    gymnasium.register(
        "SpongeJointLive-v0", single, nondeterministic=True, kwargs={**live, "control": "joint"}
    )
    gymnasium.register("SpongeDiscrete-v0", "sponge_env.env.single:DiscreteActions")
    gymnasium.register("SpongeContinuous-v0", "sponge_env.env.single:ContinuousActions")


if importlib.util.find_spec("gymnasium"):  # what only hosts replicas does without
    _register()
