"""What does the critic imitate before it learns from outcomes? Traces of an oracle: states with what should be said of them.

Sources: a JSONL file (`read_traces`), a world's own oracle (`vantage.genac.oracle`), a stronger model (there too). An oracle
sees the critic's prompt and neither outcome nor answer; both are kept beside a trace to filter and balance by.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.parsing import Tag
from vantage.genac.prompt import StateView, Template

REQUIRED = ("problem", "prefix", "used", "limit", "completion")
EARLY, LATE = 0.375, 0.625
"""Shares of a response at which its middle begins and ends."""


@dataclass(frozen=True)
class Trace:
    """A state, the solver that it is about, and an oracle's words on it, score included."""

    problem: str
    prefix: str
    used: int
    limit: int
    completion: str
    rate: float | None = None
    """The solver's success rate as the prompt shows it."""
    actor: str = "a language model"
    actor_parameters: int = 0
    position: float = 0.0
    """Share of the response that lies behind the state."""
    outcome: float | None = None
    """How the response ended, in [0, 1]."""
    truth: float | None = None
    """What the state is worth by continuations."""

    @property
    def view(self) -> StateView:
        """The state as prompts show it."""
        return StateView(self.problem, self.prefix, self.used, self.limit)

    @property
    def solver(self) -> ActorFacts:
        """The solver as prompts describe it."""
        return ActorFacts(self.actor, self.actor_parameters, rate=self.rate)

    @property
    def part(self) -> str:
        """early, middle or late."""
        return "early" if self.position < EARLY else "middle" if self.position < LATE else "late"


def read_traces(path: Path) -> list[Trace]:
    """Traces of a JSONL file, a mapping of `Trace`'s fields a line; raises `UserError` with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--genac.traces {path}: can not be read ({reason})") from error
    found = [_trace(line, f"--genac.traces {path} line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"--genac.traces {path}: it holds no trace; give one JSON object a line")
    return found


def _trace(line: str, where: str) -> Trace:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: this is no JSON object") from error
    if not isinstance(row, dict) or (missing := [name for name in REQUIRED if name not in row]):
        raise UserError(f"{where}: {missing[0] if isinstance(row, dict) else 'a JSON object'} is missing")
    known = {f.name for f in dataclasses.fields(Trace)}
    texts = ("problem", "prefix", "completion", "actor")
    for name, value in row.items():
        if name in known and value is not None and isinstance(value, str) != (name in texts):
            raise UserError(f"{where}: {name} is {value!r}, it must be {'text' if name in texts else 'a number'}")
    return Trace(**{name: value for name, value in row.items() if name in known})


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """What `read_traces` reads."""
    rows = (json.dumps(dataclasses.asdict(trace), ensure_ascii=False) for trace in traces)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def usable(
    traces: Sequence[Trace], tag: Tag, tokenizer: Any, most_tokens: int, tolerance: float | None = None
) -> tuple[list[Trace], Counter[str]]:
    """Traces that parse, end with the tag, fit into `most_tokens`, and lie within `tolerance` of the truth where it is known.

    Also how many were left out, and why.
    """
    kept, reasons = [], Counter[str]()
    for trace in traces:
        value = tag.value(trace.completion)
        if value is None or not trace.completion.rstrip().endswith(tag.closing):
            reasons["without exactly one score at the end"] += 1
        elif len(tokenizer(trace.completion, add_special_tokens=False)["input_ids"]) > most_tokens:
            reasons[f"longer than {most_tokens} tokens"] += 1
        elif tolerance is not None and trace.truth is not None and abs(value - trace.truth) > tolerance + 1e-9:
            reasons[f"further than {tolerance} from what continuations say"] += 1
        else:
            kept.append(trace)
    return kept, reasons


def balanced(traces: Sequence[Trace], count: int) -> list[Trace]:
    """`count` traces, or all where there are fewer, as equal in outcomes and parts of the response as the supply allows.

    Kinds take turns, each in its own order, until there are enough.
    """
    kinds: dict[tuple[bool | None, str], list[Trace]] = {}
    for trace in traces:
        ended_well = None if trace.outcome is None else trace.outcome >= 0.5
        kinds.setdefault((ended_well, trace.part), []).append(trace)
    queues, found = [iter(kind) for kind in kinds.values()], list[Trace]()
    while queues and len(found) < count:
        for queue in list(queues):
            following = next(queue, None)
            if following is None:
                queues.remove(queue)
            elif len(found) < count:
                found.append(following)
    return found


def encoded(traces: Sequence[Trace], template: Template, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and completions, up to and including the closing tag, which is where sampling stops."""
    return [
        (
            template.encode(tokenizer, trace.view, trace.solver),
            list(tokenizer(trace.completion.rstrip(), add_special_tokens=False)["input_ids"]),
        )
        for trace in traces
    ]


def best_of(values: Sequence[float | None], truth: float) -> int | None:
    """The number of the value with the smallest squared error, the first of equals; None where none can be parsed."""
    errors = [math.inf if v is None else (truth - v) ** 2 for v in values]
    least = min(errors, default=math.inf)
    return errors.index(least) if math.isfinite(least) else None
