"""Results: agents compared in tables, pictures and one page.

``comparison.py`` reads run directories, ``statistics.py`` tells agents apart. ``tables.py`` has
the tables of one evaluation, ``suite_tables.py`` those of a suite, ``export.py`` the same as data;
``layout.py`` turns tables into text. ``drawing.py`` has pictures over time and how all look,
``page.py`` the report.
"""
