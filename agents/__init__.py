"""Controllers that optimise or learn."""
