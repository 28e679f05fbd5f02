"""Training of learned controllers. Following a policy is in :mod:`agents.learned`."""
