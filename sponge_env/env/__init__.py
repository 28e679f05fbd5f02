"""Gymnasium's face: single and vector environments, and the factory of systems."""
