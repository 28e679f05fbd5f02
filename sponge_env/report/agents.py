"""Names of the agents that a report says something about, in one place."""

from __future__ import annotations

Group = tuple[str, ...]
"""Agents of which the best counts, see :mod:`sponge_env.report.rates`."""

SPONGE: Group = ("sponge-ip",)
"""The program per request."""

PUBLISHED: Group = ("sponge-paper",)
"""The program as published."""

FA2: Group = ("fa2",)
"""The horizontal scaler, which takes the largest fleet where its formula finds nothing."""

HORIZONTAL: Group = ("fa2", "fa2-tuned")
"""The same, and with the options that did best on training seeds."""

PUBLISHED_HORIZONTAL: Group = ("fa2-paper",)
"""As published: where its formula finds nothing, it keeps what it has."""

LOOKING_AHEAD: Group = ("sponge-mpc",)
"""The program with forecasts."""

JOINT: Group = ("sponge-joint",)
"""Cores and replicas."""

LEARNED: Group = (
    "ppo",
    "ppo-joint",
    "maskable-ppo",
    "recurrent-ppo",
    "recurrent-ppo-joint",
    "residual-ppo",
)
"""Controllers with a policy; all others are rules or programs."""

FEATURED: Group = (
    "sponge-ip",
    "sponge-paper",
    "sponge-mpc",
    "sponge-joint",
    "fa2",
    "static-tuned",
    "ppo-joint",
)
"""Agents that are shown where there is no room for all; as many as there are colours."""
