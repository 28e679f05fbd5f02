"""Service whose batches take the CPU time that was measured live."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import replace

from sponge_env.interfaces import Completion, FloatArray, SystemSpec
from sponge_env.profile import Profile
from sponge_env.seeding import stream
from sponge_env.workers.bucket import QuotaBucket
from sponge_env.workers.simulated import SimulatedWorker


class MeasuredWork:
    """CPU time of batches, handed out again by size, in the order in which it was measured.

    A simulated batch of a size that has run out, or never came up, takes what the profile
    says, times how the live batches compared with it on the whole.
    """

    def __init__(self, completions: Iterable[Completion], usual_s: FloatArray) -> None:
        """Take what was measured.

        Args:
            completions: Batches in the order of their end; those without a CPU time, such as
                those that failed, are left out.
            usual_s: (batch_max,) CPU seconds of a batch by the profile.
        """
        self._usual_s = usual_s
        self._measured_s: dict[int, deque[float]] = defaultdict(deque)
        measured_s = expected_s = 0.0
        for completion in completions:
            if completion.ok and completion.cpu_s > 0:
                size = completion.batch.size
                self._measured_s[size].append(completion.cpu_s)
                measured_s += completion.cpu_s
                expected_s += float(usual_s[size - 1])
        self.ratio = measured_s / expected_s if expected_s > 0 else 1.0
        """CPU time of all batches, relative to the profile's."""

    def take(self, size: int) -> float:
        """Return the work of the next batch of a size, relative to the usual."""
        if self._measured_s[size]:
            return self._measured_s[size].popleft() / float(self._usual_s[size - 1])
        return self.ratio


class ReplayedBucket(QuotaBucket):
    """A replica under a CPU quota that does measured work."""

    work: MeasuredWork

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch; what was measured takes the place of the noise."""
        super().start(now_s, size, self.work.take(size))


def replaying_worker(
    profile: Profile, spec: SystemSpec, work: MeasuredWork, seed: int
) -> SimulatedWorker:
    """Build a simulated worker whose batches do measured work.

    Args:
        profile: Measured under a CPU quota.
        spec: The system.
        work: The batches' CPU time; used up by the worker.
        seed: Of the moments at which the kernel refills the replicas' quotas.

    Raises:
        ProfileError: The profile was not measured under a CPU quota.
    """
    work_s, rng = profile.work_table_s(spec.batch_max), stream(seed, "noise")
    assert profile.quota is not None  # or there would be no table of the work
    quota = replace(profile.quota, resume_s=0.0)  # which the measured times include

    def make_service(cores: int) -> ReplayedBucket:
        bucket = ReplayedBucket(quota, work_s, spec.core_unit, cores, rng.random())
        bucket.work = work
        return bucket

    return SimulatedWorker(
        make_service, spec.initial, cold_start_s=spec.cold_start_s, cpu_cores=spec.cpu_cores
    )
