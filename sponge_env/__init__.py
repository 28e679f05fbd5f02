"""Control of a CPU-limited inference server under dynamic SLOs.

Importing the package registers ``Sponge-v0`` (simulated) and ``SpongeLive-v0`` (real
worker) with Gymnasium.
"""

import gymnasium

gymnasium.register(
    id="Sponge-v0",
    entry_point="sponge_env.env:SpongeEnv",
    vector_entry_point="sponge_env.vector.gym_env:SpongeVectorEnv",
)
gymnasium.register(
    id="SpongeLive-v0",
    entry_point="sponge_env.env:SpongeEnv",
    nondeterministic=True,
    kwargs={"backend": "live", "scenario": "local"},
)
