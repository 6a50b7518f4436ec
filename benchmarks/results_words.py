"""How numbers of a comparison are written in docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
"""The JSON of a comparison, or a part of it."""


def listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def ranked(found: Found) -> list[tuple[str, Found]]:
    """Algorithms by final accuracy, the best first."""
    rows = found["algorithms"].items()
    return sorted(rows, key=lambda item: -item[1]["means"]["final_accuracy"]["mean"])


def interval(value: Found, signed: bool = False) -> str:
    """A mean with its interval; alone where one run has none."""
    if value["low"] is None:
        return f"{value['mean']:{'+' if signed else ''}.3f} (one seed)".replace("-", "−")
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(value["mean"], value["low"], value["high"]).replace("-", "−")


def reached(value: Found, unit: float, name: str) -> str:
    if value["median"] is None:
        return f"> {value['median_at_least'] / unit:.0f}{name} ({value['reached']} of {value['of']} seeds)"
    return f"{value['median'] / unit:.0f}{name} ({value['reached']} of {value['of']} seeds)"


def share(value: Found) -> str:
    return "–" if value["share_of_reference"] is None else f"{value['share_of_reference']:.2f}"


def counted(better: Sequence[tuple[bool, bool]], word: str, what: str) -> str:
    """How often a claim was seen in the mean, and how often beyond the interval."""
    seen, told = (sum(flags) for flags in zip(*better)) if better else (0, 0)
    return f"{word} {seen} of {len(better)} {what} in the mean, beyond the interval in {told}"


def held(better: Sequence[tuple[bool, bool]], what: str) -> str:
    """What that says of a claim about every one of them."""
    seen, told = (all(flags) for flags in zip(*better)) if better else (False, False)
    return "holds here" if told else "holds in the mean only" if seen else f"does not hold {what} here"
