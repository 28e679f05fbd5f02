"""Workers: the simulated one and the real one, behind one seam."""
