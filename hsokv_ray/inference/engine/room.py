"""Memory that is free where texts that were read are kept."""

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Return the bytes that are free on `device`; in main memory no more than the container may take.

    Args:
        cgroup: folder of the process's control group (version 2); without one the machine's memory counts.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available, left = psutil.virtual_memory().available, _left_of(cgroup)
    return available if left is None else min(available, left)


def _left_of(cgroup: Path) -> int | None:
    """Return what the container may still take, files in its cache not counted; None without a limit."""
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        facts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
