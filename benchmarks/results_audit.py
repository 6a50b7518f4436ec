"""The page's part on X1 and X2: bias and variance of every gradient, cost of every value; from results/x1-*.json, x2*.json."""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS
from results_words import Found, listed
from vantage.audit.words import percent

PARTS = ("exact", "sums", "values", "generative")
OWN = "poise, own features"
EXPECTED = "genac, expected score"


def audits() -> list[str]:
    """X1's parts and X2, each where it was run."""
    lines: list[str] = []
    for part in PARTS:
        path = RESULTS / f"x1-{part}.json"
        if path.is_file():
            lines += x1(part, json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("x2*.json")):
        lines += x2(json.loads(path.read_text()))
    return lines


def x1(part: str, found: Found) -> list[str]:
    return [*(exact(found) if part == "exact" else sampled(found)), ""]


def exact(found: Found) -> list[str]:
    """Sums over every group of responses."""
    lines = [
        "# X1, exactly: bias and variance of every algorithm's gradient on the enumerable world",
        "",
        "**Scale.** A policy of 18 numbers, two prompts, 15 responses, groups of 2; every group is enumerated through",
        f"the trainer's own gradient, so there is no noise. Probes have learnt from {found['fill_steps']} sampled steps of",
        f"{found['rollouts_per_step']} rollouts. Bias: what is left after the factor that fits best, as a share of the",
        "gradient's norm; length: that factor; variance: of a step at equal rollouts, over that of RLOO with "
        "groups of 2, at equal",
        "length of the gradient; siblings: what Proposition 1 leaves out, as a share of the variance.",
        "A step is one group here, so what normalises over a step (`reinforce`, and losses by tokens) does it over two.",
        "",
        "| algorithm | rollouts a prompt | loss | bias | length | variance | siblings | at m = 1: predicted, enumerated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["algorithms"].items():
        noise = row["noise"]
        members, step = row["members"], noise["step"]["mean"]
        siblings = (members - 1) * noise["siblings"]["mean"] / found["rollouts_per_step"] / step
        one = next(point for point in noise["predicted"] if point["members"] == 1)
        enumerated = "–" if not one["enumerated"] else f"{one['enumerated']:.3f}"
        lines.append(
            f"| `{name}` | {members} | {row['aggregation']} | {percent(row['bias']['share']['mean'])} | "
            f"{row['bias']['scale']['mean']:.3g} | {noise['at_equal_rollouts']['mean']:.3f} | {_signed(siblings)} | "
            f"{one['mean']:.3f}, {enumerated} |"
        )
    rows = found["algorithms"]
    none = [name for name, row in rows.items() if not row["bias"]["found"]]
    return [
        *lines,
        "",
        f"No bias at all (below 1e-12): {listed([f'`{name}`' for name in none])}.",
        "",
        *_planted(rows, True),
    ]


def sampled(found: Found) -> list[str]:
    """Blocks of rollouts, with intervals."""
    lines = [
        f"# X1 on `{found['settings'].get('task', 'sums')}`: bias and variance from blocks of rollouts"
        + _about(found["algorithms"]),
        "",
        f"**Scale.** Model `{found['model']}`, a policy that stands still; {found['blocks']} blocks,",
        f"{found['prompts']:,} prompts, {found['rollouts']:,} rollouts; steps of {found['rollouts_per_step']}.",
        f"Probes and critics have learnt from {found['fill_steps']} steps. Reference: RLOO over "
        f"{found['reference']['members']}",
        f"rollouts of a prompt on the same rollouts. Intervals: jackknife over blocks, "
        f"{found['confidence']:.0%}, not corrected for",
        "the number of algorithms. Variance at equal length of the gradient.",
        "",
        "| algorithm | rollouts a prompt | bias | length | variance at equal rollouts | at equal tokens | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["algorithms"].items():
        bias, noise = row["bias"], row["noise"]
        share = (
            "–" if bias["share"] is None else f"{percent(bias['share']['mean'])} (≤ {percent(bias['share']['high'])})"
        )
        lines.append(
            f"| `{name}` | {row['members']} | {share} | {_interval(bias['scale'])} | "
            f"{_interval(noise and noise['at_equal_rollouts'])} | {_interval(noise and noise['at_equal_tokens'])} | "
            f"{brief(row['verdict'])} |"
        )
    return [
        *lines,
        *(["", *_planted(found["algorithms"], False)] if {"poise", OWN} <= set(found["algorithms"]) else []),
        *(["", *_answers(found["algorithms"])] if EXPECTED in found["algorithms"] else []),
    ]


def _answers(rows: Found) -> list[str]:
    """Whether the noise of one answer of the critic shows in the gradient."""
    ways = [name for name in rows if name.startswith("genac")]
    known = {name: rows[name]["noise"]["at_equal_rollouts"] for name in ways if rows[name]["noise"]}
    said = ", ".join(f"{value['mean']:.3f} ({name})" for name, value in known.items()) or "–"
    told = set(ways) == set(known) and all(known[w]["high"] < known["genac"]["low"] for w in ways if w != "genac")
    return [
        "| claim | source | ours | verdict |",
        "|---|---|---|---|",
        f"| the noise of one answer of the critic costs variance | – | {said} | "
        f"{'holds here' if told else 'not seen beyond the intervals'} |",
    ]


def _about(rows: Found) -> str:
    """What else the title says of a part."""
    if EXPECTED in rows:
        return ", ways to read a critic that is a language model"
    return ", values that are generated" if "vineppo" in rows else ""


def _planted(rows: Found, exact: bool) -> list[str]:
    """The bias that was put there, and its control."""
    own, cross = rows[OWN]["bias"], rows["poise"]["bias"]
    if not (own["resolved"] and cross["resolved"]):
        said = "not resolved: these rollouts do not tell the gradient from its noise"
        shares = "–"
    else:
        right = own["found"] and not cross["found"]
        said = (
            "holds here"
            if right
            else "the planted bias is not found at this size"
            if not own["found"]
            else "does not hold here"
        )
        sign = "" if exact else " estimated"
        shares = f"own {percent(own['share']['mean'])}{sign}, cross {percent(cross['share']['mean'])}{sign}"
    return [
        "| claim | source | ours | verdict |",
        "|---|---|---|---|",
        "| a probe that reads the rollout's own features biases the gradient, one that reads its siblings' does not | "
        f"POISE §2.2 | {shares} | {said} |",
    ]


def x2(found: Found) -> list[str]:
    """Seconds, memory and tokens of each value estimate."""
    rows = found["algorithms"]
    machine = found["machine"]
    lines = [
        f"# X2: what a value costs, `{found['model']}` on `{found['task']}`",
        "",
        f"**Scale.** {found['rollouts_per_step']} rollouts a step, medians of {found['steps']} steps after the first two;",
        f"{machine['cores']} cores, shared with other work, so seconds are comparable only roughly; device {found['device']}.",
        "",
        "| algorithm | value, seconds a step | its learning | share of the step | tokens for values, of the rollouts' | "
        "step / `rloo` | peak memory / `rloo` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| `{name}` | {row['seconds_value']:.3f} | {row['seconds_value_update']:.3f} | "
            f"{100 * row['share_of_time']:.1f} % | {row['tokens_value'] / row['tokens_rollouts']:.2f} | "
            f"{row['step_over_base']:.2f} | {row['peak_over_base']:.2f} |"
        )
    return [*lines, ""]


def _interval(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]".replace("-", "−")


def _signed(value: float) -> str:
    return "0" if abs(value) < 5e-4 else f"{100 * value:+.1f} %".replace("-", "−")


def brief(verdict: str) -> str:
    """Without how many rollouts a finer statement takes, which the audit's own report has."""
    return "; ".join(part for part in verdict.split("; ") if not part.startswith("to find or exclude"))
