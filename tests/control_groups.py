"""What the kernel shows of the control groups that a harness made."""

import os
from pathlib import Path

from sponge_env.live.cgroups import find_hierarchy


def groups_of(pid):
    hierarchy = find_hierarchy()
    folders = os.walk(hierarchy.mount) if hierarchy else ()
    found = (Path(folder, name) for folder, names, _ in folders for name in names)
    return {path for path in found if path.name.startswith(f"sponge-{pid}-")}
