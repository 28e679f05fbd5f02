"""How well the simulator repeats the real worker: ``python -m sponge_env.fidelity``.

The same arrivals run live, simulated, and simulated with the CPU time of batches as measured live.
"""
