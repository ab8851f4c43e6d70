"""The load figures of a simulated machine, which follow the number of its sessions as a real one's do."""

from __future__ import annotations

import math

_PERIODS_SECONDS = (60.0, 300.0, 900.0)
_IDLE_LOAD = 0.05
_LOAD_PER_RUNNING = 0.18
_KB_SYSTEM = 900_000
_KB_PER_RUNNING = 420_000
_KB_PER_SUSPENDED = 260_000


class MachineLoad:
    """Load averages that approach what the sessions cost with the kernel's three time constants."""

    def __init__(self, *, cpus: int, cpu_mhz: float, mem_total_kb: int, phase: float) -> None:
        self.cpus, self.cpu_mhz, self.mem_total_kb = cpus, cpu_mhz, mem_total_kb
        self._phase = phase
        self._averages: tuple[float, ...] = ()
        self._sampled_at = 0.0

    def stdout(self, now: float, running: int, suspended: int) -> bytes:
        """Return the probe's load lines at epoch second ``now``."""
        wobble = 0.5 + 0.5 * math.sin(now / 37.0 + self._phase)
        target = _IDLE_LOAD + running * (_LOAD_PER_RUNNING + 0.04 * wobble)
        if not self._averages:
            self._averages = (target,) * len(_PERIODS_SECONDS)
        elapsed = max(0.0, now - self._sampled_at) if self._sampled_at else 0.0
        self._averages = tuple(
            average + (target - average) * (1.0 - math.exp(-elapsed / period))
            for average, period in zip(self._averages, _PERIODS_SECONDS, strict=True)
        )
        self._sampled_at = now
        used_kb = _KB_SYSTEM + running * _KB_PER_RUNNING + suspended * _KB_PER_SUSPENDED
        available_kb = max(self.mem_total_kb - used_kb, self.mem_total_kb // 50)
        averages = " ".join(f"{average:.2f}" for average in self._averages)
        return (
            f"loadavg {averages}\nmemtotal_kb {self.mem_total_kb}\nmemavailable_kb {available_kb}\n"
            f"cpus {self.cpus}\ncpu_mhz {self.cpu_mhz:.1f}\n"
        ).encode()
