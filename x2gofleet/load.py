"""LoadReport: how busy a server is, from the five lines that the probe prints of /proc."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LARGEST = 2.0**53
_FIGURES = {"loadavg": 3, "memtotal_kb": 1, "memavailable_kb": 1, "cpus": 1, "cpu_mhz": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Load averages over 1, 5 and 15 minutes, memory in the kB of /proc/meminfo, processors and their MHz."""

    avg1: float
    avg5: float
    avg15: float
    mem_total_kb: int
    mem_available_kb: int
    cpus: int
    cpu_mhz: float

    @property
    def load_factor(self) -> int:
        """How much a server has to offer by x2gobroker's measure: the higher, the freer; never less than 1.

        The figure that x2gobroker gets of its own agent, which cuts load and MB to whole numbers and rounds MHz up,
        before the broker calculates with them: an idle server's is up to twice what the formula alone would give.
        A factor of 0 would make x2gobroker divide by zero. Source: x2gobroker 0.0.4.3, agent.check_load and
        x2gobroker-agent.pl.
        """
        load_percent = int((self.avg1 + self.avg5 + self.avg15) * 100 / 3 + 1)
        megabytes = int(self.mem_available_kb / 1000)
        return max(1, int(megabytes / 1000 * self.cpus * math.ceil(self.cpu_mhz) * 100 / load_percent))

    @classmethod
    def from_stdout(cls, stdout: bytes) -> LoadReport:
        """Parse lines ``loadavg A B C``, ``memtotal_kb N``, ``memavailable_kb N``, ``cpus N``, ``cpu_mhz X``.

        Other lines are passed over. Raises ValueError, naming the figure, where one is missing or absurd.
        """
        figures: dict[str, list[float]] = {}
        for line in stdout.decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and words[0] in _FIGURES:
                figures[words[0]] = _numbers(words[0], words[1:])
        missing = [name for name in _FIGURES if name not in figures]
        if missing:
            raise ValueError(f"load: no line {', '.join(missing)}; expected one each of {', '.join(_FIGURES)}")
        avg1, avg5, avg15 = figures["loadavg"]
        return cls(
            avg1=avg1,
            avg5=avg5,
            avg15=avg15,
            mem_total_kb=int(figures["memtotal_kb"][0]),
            mem_available_kb=int(figures["memavailable_kb"][0]),
            cpus=int(figures["cpus"][0]),
            cpu_mhz=figures["cpu_mhz"][0],
        )


def _numbers(name: str, words: list[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    # Bounded, so that no product of them overflows; NaN fails the comparison too.
    if len(numbers) != _FIGURES[name] or not all(0 <= number <= _LARGEST for number in numbers):
        raise ValueError(f"load: {name} is not {_FIGURES[name]} number(s) from 0 to 2**53")
    return numbers
