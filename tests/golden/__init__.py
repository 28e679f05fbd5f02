"""What the project computes, kept as hashes: ``python -m tests.golden.record --check``.

``cells.py`` says what is played, ``play.py`` plays it and alone knows the product's insides,
``entries.py`` sums it up, ``record.py`` writes and checks the JSON files beside it.
"""
