"""``residual-ppo``: a learned policy corrects the look-ahead program instead of replacing it.

Every interval the policy chooses the margin of ``sponge-mpc``, how far it looks and what a late
request costs; the program then chooses cores and batch size. Whatever the policy does, the
program still sees every deadline, so that a policy that has learned nothing is no worse than a
badly set program (residual reinforcement learning: Johannink et al., ICRA 2019; Silver et al.,
2018).
"""

from __future__ import annotations

import dataclasses

from sponge_env.arrays import IntArray
from sponge_env.errors import PolicyError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .learned import PolicyController
from .lookahead import MPCConfig
from .sponge_mpc import SpongeMPC

MARGINS = (0.25, 0.5, 1.0, 2.0)
"""Multiples of :attr:`~.lookahead.MPCConfig.guard` to choose from."""
HORIZONS = (0, 1, 2)
"""Values of :attr:`~.lookahead.MPCConfig.look_ahead` to choose from."""
PRICES = (0.25, 1.0, 4.0)
"""Multiples of :attr:`~.lookahead.MPCConfig.late_price` to choose from."""

CHOICES = (len(MARGINS), len(HORIZONS), len(PRICES))
"""Number of choices of each part of an action."""

_GUARD_MAX = 0.9


def preset(config: MPCConfig) -> tuple[int, ...]:
    """Return the action that leaves the program as it is."""
    return MARGINS.index(1.0), HORIZONS.index(config.look_ahead), PRICES.index(1.0)


def corrected(config: MPCConfig, action: IntArray) -> MPCConfig:
    """Return the options of the program under an action.

    Args:
        config: Options without correction.
        action: (3,) places in :data:`MARGINS`, :data:`HORIZONS` and :data:`PRICES`.
    """
    margin, horizon, price = action
    return dataclasses.replace(
        config,
        guard=min(config.guard * MARGINS[margin], _GUARD_MAX),
        look_ahead=HORIZONS[horizon],
        late_price=config.late_price * PRICES[price],
    )


class CorrectedMPC(SpongeMPC):
    """``sponge-mpc`` with other options at each decision.

    What it knows of the requests and the service times goes on from one decision to the next,
    whatever the options were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._preset = self.config

    def correct(self, action: IntArray) -> None:
        """Set the options of the next decisions; after :meth:`reset`.

        Args:
            action: See :func:`corrected`.
        """
        self.config = corrected(self._preset, action)
        self._program.correct(self.config)


class ResidualController(PolicyController):
    """Follows a policy that corrects the program."""

    def __init__(self, policy: str = "newest") -> None:
        """Choose where the policy comes from.

        Args:
            policy: See :class:`.learned.PolicyController`.
        """
        super().__init__("residual-ppo", policy)
        self._program = CorrectedMPC()

    def begin(self, spec: SystemSpec) -> None:
        """Find the policy and start the program.

        Raises:
            PolicyError: There is no policy for this system, or it makes other corrections.
        """
        super().begin(spec)
        if self.policy.info.actions != CHOICES:
            raise PolicyError(f"{self._path} makes other corrections than this version; train anew")
        self._program.reset(spec, seed=0)

    def _allocation(self, action: IntArray, view: SystemView) -> Allocation:
        self._program.correct(action)
        return self._program.decide(view)
