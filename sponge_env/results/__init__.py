"""Results: what is measured, and how people read it.

``schema.py`` declares the metrics and the columns of all tables. ``tensorboard.py`` writes runs
for TensorBoard. ``comparison.py`` reads run directories into a comparison, whose agents
``statistics.py`` tells apart; ``tables.py`` and ``figures.py`` show what is in it, and
``page.py`` fills it into ``templates``. ``layout.py`` turns tables into text.
``python -m sponge_env.results RUN`` is the command.
"""
