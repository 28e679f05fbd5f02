"""Thousands of simulated environments stepped at once by compiled code.

``kernels/`` repeats the reference system module by module, so that the two can be laid
side by side; ``tests/test_vector_differential.py`` holds them to each other::

    kernels/rng.py        seeding.py
    kernels/network.py    bandwidth.py, network.py
    kernels/arrivals.py   workload.py, arrival_processes.py, arrival_traces.py
    kernels/queue.py      serving/edf.py, serving/fifo.py
    kernels/serving.py    serving/core.py, serving/drive.py, serving/ledger.py
    kernels/service.py    workers/service.py
    kernels/worker.py     workers/simulated.py
    kernels/system.py     system.py, reward.py
    kernels/encoding.py   encoding.py

``layout.py`` says what is in memory, ``configuration.py`` puts scenarios there,
``simulator.py`` is the interface, ``gym_env.py`` and ``sb3_env.py`` are its faces.
"""
