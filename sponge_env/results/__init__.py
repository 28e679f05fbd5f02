"""Results: agents compared in tables, pictures and one page.

``comparison.py`` reads run directories, ``statistics.py`` tells agents apart. ``tables.py`` has
the tables of one evaluation, ``suite_tables.py`` those of a suite, ``export.py`` the same as data;
``layout.py`` turns tables into text. ``figures.py`` and ``time_series.py`` draw, ``page.py`` fills
a report's template.
"""
