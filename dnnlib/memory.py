"""How much memory there is: of the machine, or of the container that this process may use."""

import os
from pathlib import Path

FALLBACK_MEMORY = 8 << 30  # bytes assumed where the system does not tell


def available_memory() -> int:
    """Bytes that this process may still use; an estimate."""
    return min(_system_memory(), _container_memory())


def _container_memory() -> int:
    """What the limit of a container (cgroup 2) leaves; without one, a number that is larger than any memory."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):  # no such file; or "max", for no limit
        return 1 << 62


def _system_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        # Physical, not free: what other systems call free leaves out the memory that caches would give back.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return FALLBACK_MEMORY
