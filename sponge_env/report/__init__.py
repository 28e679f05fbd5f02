"""Reports: what runs found, as a page, as Markdown and as pictures.

``source.py`` reads run directories (``fidelity.py`` what the fidelity check wrote);
``tables.py``, ``overview.py``, ``pareto.py`` and ``pictures.py``
show what is in them, ``findings.py`` says it in sentences. ``rates.py`` compares two
controllers, named in ``agents.py``; ``targets.py``, ``scaling.py`` and ``live.py`` judge by it,
with ``judging.py``. ``section.py`` gathers all of one run and ``render.py`` fills it into
``templates``. ``python -m sponge_env.report`` is the command; ``comparison.py`` draws the one
picture that every evaluation leaves behind.
"""

from sponge_env.report.comparison import plot_comparison

__all__ = ["plot_comparison"]
