"""Replicas that are pods, resized in place and scaled by three calls of the Kubernetes API."""
