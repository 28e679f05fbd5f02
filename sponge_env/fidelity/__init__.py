"""How well the simulator repeats the real worker: ``python -m sponge_env.fidelity``.

The same arrivals and the same controller run live, on the simulator, and on the simulator
with the CPU time of each batch as the live run measured it. The first difference is what a
user of the simulator gets; the second leaves out how fast the machine happened to be and so
shows the model's own error. ``docs/fidelity.md`` says what the model is made of.
"""
