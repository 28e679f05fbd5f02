"""Make every trace that ships with the project, byte for byte the same each time.

``python traces/generate.py`` writes the files and their CHECKSUMS.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sponge_env.scenario.config import Arrivals, Network
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.workload import draw_bandwidth, draw_workload

SEED = 2024
DURATION_S = 600.0
RATE_RPS = 20.0
DAY_SWING = 0.75  # how far the rate of the compressed day goes above and below its mean
PROFILE = load_profile("yolov5s")  # without a load, it is never asked


def bandwidth_4g() -> str:
    """Return ten minutes of synthetic 4G bandwidth as CSV."""
    trace = draw_bandwidth(_episode("4g", DURATION_S), PROFILE, SEED)
    samples = zip(trace.start_s, trace.bandwidth_bytes_per_s, strict=True)
    rows = (f"{start_s:.0f},{bandwidth:.0f}\n" for start_s, bandwidth in samples)
    return "time_s,bandwidth_bytes_per_s\n" + "".join(rows)


def bursty_arrivals() -> str:
    """Return ten minutes of Markov-modulated Poisson arrivals as CSV."""
    sent_s = draw_workload(_episode("none", DURATION_S), PROFILE, SEED).sent_s
    return "arrival_s\n" + "".join(f"{time_s:.6f}\n" for time_s in sent_s)


def day_counts() -> str:
    """Return a day's rise and fall pressed into ten minutes, as requests per second."""
    rates_rps = RATE_RPS * (1 - DAY_SWING * np.cos(2 * np.pi * np.arange(DURATION_S) / DURATION_S))
    return "".join(f"{count}\n" for count in stream(SEED, "day").poisson(rates_rps))


def _episode(network: str, duration_s: float) -> Scenario:
    arrivals = Arrivals(kind="bursty", rate_rps=RATE_RPS)
    return Scenario("made", duration_s=duration_s, arrivals=arrivals, network=Network(network))


FILES = {
    "4g-600s.csv": bandwidth_4g,
    "arrivals-bursty-600s.csv": bursty_arrivals,
    "arrivals-day-600s.csv": day_counts,
}


def write(folder: Path) -> None:
    """Write all traces and CHECKSUMS, in the form that ``sha256sum --check`` reads."""
    checksums = []
    for name, make in FILES.items():
        content = make().encode()
        (folder / name).write_bytes(content)
        checksums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "CHECKSUMS").write_text("".join(checksums))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write")
    write(parser.parse_args(argv).out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
