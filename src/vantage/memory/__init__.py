"""What memory does a run take? `estimates` says it, before any weight is loaded; `report` is what the doctor shows of it.

    from vantage.memory import Settings, estimate

`model` builds a policy's shape on the meta device, `trace` runs the parts of a step there and counts what lives, and `dealt`
holds what FSDP2 holds.
"""

from vantage.memory.estimates import (
    Change,
    Estimate,
    Estimator,
    Settings,
    cache_bytes,
    changes,
    estimate,
    make_fit,
    optimizer_bytes,
    optimizer_work_bytes,
    parameter_bytes,
)

__all__ = [
    "Change", "Estimate", "Estimator", "Settings", "cache_bytes", "changes", "estimate", "make_fit", "optimizer_bytes",
    "optimizer_work_bytes", "parameter_bytes",
]  # fmt: skip
