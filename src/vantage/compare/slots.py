"""How many runs go side by side, and what does each of them get of the machine: a GPU, or a share of the cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vantage.errors import UserError


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """CUDA devices by the names that CUDA_VISIBLE_DEVICES takes, without loading torch; empty where there are none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    found = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return sorted((name for name in found if name.isdigit()), key=int)


def slots_of(jobs: int | None, device: str, gpus: Sequence[str] | None = None) -> list[Mapping[str, str]]:
    """The environment of each of the runs that go side by side.

    One run for each GPU by default, else one at a time. More runs than GPUs are refused; runs that share a CPU get
    their share of the cores as threads, unless OMP_NUM_THREADS says otherwise.

    Raises:
        UserError: `jobs` is more than there are GPUs.
    """
    found = [] if device == "cpu" else list(visible_gpus() if gpus is None else gpus)
    count = jobs or max(1, len(found))
    if count == 1:
        return [{}]
    if not found:
        threads = max(1, (os.cpu_count() or 1) // count)
        return [{} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}] * count
    if count > len(found):
        raise UserError(f"--jobs is {count}, but there are {len(found)} GPUs and each run takes one; lower it")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in found[:count]]
