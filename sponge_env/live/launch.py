"""Where the real workers of this process have their replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sponge_env.live.local import LocalLauncher
from sponge_env.live.replica import Launcher, LiveConfig


class Place:
    """Opens launchers: of child processes here, unless a command says otherwise."""

    def __init__(self) -> None:
        self.open: Callable[[Sequence[LiveConfig]], Launcher] = LocalLauncher

    @property
    def is_here(self) -> bool:
        """Whether replicas run on this machine, and on its CPUs."""
        return self.open is LocalLauncher


PLACE = Place()
"""One for the process, as its CPUs are."""
