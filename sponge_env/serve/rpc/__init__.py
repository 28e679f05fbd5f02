"""The server's gRPC."""

import os

# gRPC writes what clients say, escape sequences too, into the server's log. It reads this once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
