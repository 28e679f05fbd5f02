"""The server: clients of their own, each request with a deadline, the same core in charge."""
