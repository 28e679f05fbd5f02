"""The Open Inference Protocol, as pure functions: what HTTP and gRPC have in common."""
