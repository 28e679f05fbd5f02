"""Control of a CPU-limited inference server under dynamic SLOs."""
