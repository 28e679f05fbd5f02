"""A client that plays a scenario against a server."""
