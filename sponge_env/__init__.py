"""Control of a CPU-limited inference server under dynamic SLOs.

Importing the package registers ``Sponge-v0`` (simulated) and ``SpongeLive-v0`` (real
worker) with Gymnasium, and ``SpongeJoint-v0`` and ``SpongeJointLive-v0``, whose actions
choose the number of replicas as well; ``SpongeVariants-v0``, whose actions choose the model
variant; and ``SpongePipeline-v0``, whose actions choose all that for each of several stages.
``SpongeDiscrete-v0`` and ``SpongeContinuous-v0`` are ``Sponge-v0`` with one whole number, or real
numbers, as action.
"""

import gymnasium

__version__ = "0.3.0"

gymnasium.register(
    id="Sponge-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    vector_entry_point="sponge_env.env.vector:SpongeVectorEnv",
)
gymnasium.register(
    id="SpongeLive-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    nondeterministic=True,
    kwargs={"backend": "live", "scenario": "local"},
)
gymnasium.register(
    id="SpongeJoint-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    vector_entry_point="sponge_env.env.vector:SpongeVectorEnv",
    kwargs={"control": "joint"},
)
gymnasium.register(
    id="SpongeJointLive-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    nondeterministic=True,
    kwargs={"backend": "live", "scenario": "local", "control": "joint"},
)
gymnasium.register(
    id="SpongeVariants-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    vector_entry_point="sponge_env.env.vector:SpongeVectorEnv",
    kwargs={"scenario": "variants", "control": "variants"},
)
gymnasium.register(
    id="SpongePipeline-v0",
    entry_point="sponge_env.env.single:SpongeEnv",
    vector_entry_point="sponge_env.env.vector:SpongeVectorEnv",
    kwargs={"scenario": "pipeline-video", "control": "pipeline"},
)
gymnasium.register(id="SpongeDiscrete-v0", entry_point="sponge_env.env.single:discrete")
gymnasium.register(id="SpongeContinuous-v0", entry_point="sponge_env.env.single:continuous")
