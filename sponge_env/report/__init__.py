"""Reports: what runs found, as a page, as Markdown and as pictures.

``source.py`` reads run directories, ``tables.py`` and the files named after pictures show
what is in them, ``findings.py`` and ``targets.py`` say it in sentences, ``page.py`` and
``markdown.py`` put it together. ``python -m sponge_env.report`` is the command;
``comparison.py`` draws the one picture that every evaluation leaves behind.
"""

from sponge_env.report.comparison import plot_comparison

__all__ = ["plot_comparison"]
