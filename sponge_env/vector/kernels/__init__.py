"""The reference system once more, as compiled functions of a ``World``."""
