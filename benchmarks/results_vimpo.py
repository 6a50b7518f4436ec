"""The part of docs/results.md on VIMPO: V1, V2 and V3."""

from __future__ import annotations

import json

from common import RESULTS
from results_words import Found, interval, listed, ranked

PAPER = {
    "v1": ("VIMPO beats GRPO", "39.5 against 37.4, average"),
    "v2-group": ("and keeps the lead under 25 % flipped rewards", "35.9 against 32.2"),
    "v2-rollout": ("the same, flipped one by one", "–"),
}
TITLES = {"v1": "clean rewards", "v2-group": "25 % flipped by groups", "v2-rollout": "25 % flipped by rollouts"}
MEANING = {
    "vimpo": "defaults: β 5e-4, actor coefficient scaled to the response budget (9.8e-5)",
    "value-only": "actor coefficient 0",
    "actor-0.005": "the paper's actor coefficient, not scaled",
    "bonus-small": "value loss and an explicit KL reward of 3e-6",
    "bonus-large": "value loss and an explicit KL reward of 1.5e-4, the expected size of the unscaled actor branch",
    "beta-0.025": "β 50 times as large, actor coefficient too",
    "beta-0.025-value-only": "the same without actor branch",
    "dr_grpo": "Dr. GRPO",
}


def vimpo() -> list[str]:
    """V1 to V3, as far as their JSON is there."""
    parts = {name: RESULTS / f"vimpo-{name}.json" for name in (*PAPER, "v3")}
    found = {name: json.loads(path.read_text()) for name, path in parts.items() if path.exists()}
    clean = [name for name in PAPER if name in found]
    lines = [*against_grpo({name: found[name] for name in clean})] if clean else []
    return lines + (ablation(found["v3"]) if "v3" in found else [])


def against_grpo(parts: dict[str, Found]) -> list[str]:
    """V1 and V2."""
    first = next(iter(parts.values()))
    budgets = {part["budget"]["amount"] for part in parts.values()}
    lines = [
        "# V1 and V2: VIMPO against GRPO, with clean and with flipped rewards",
        "",
        f"**Scale.** `tiny` on `sums`, {' or '.join(f'{b:,}' for b in sorted(budgets))} generated tokens a run, "
        "reporting seeds "
        f"{listed(first['seeds']['reporting'])},",
        f"learning rates tuned on seed {listed(first['seeds']['tuning'])} over {listed(first['tuning']['grid'])}. "
        f"Intervals are {first['interval']}.",
        "",
        "| rewards | algorithm | learning rate | final accuracy | seconds a step |",
        "|---|---|---|---|---|",
    ]
    for name, part in parts.items():
        for algorithm, row in ranked(part):
            lines.append(
                f"| {TITLES[name]} | `{algorithm}` | {row['learning_rate']:g} | {interval(row['means']['final_accuracy'])} | "
                f"{row['means']['seconds_per_step']['mean']:.2f} |"
            )
    lines += ["", "| claim | paper | ours | verdict |", "|---|---|---|---|"]
    for name, part in parts.items():
        ours = difference(part, "vimpo", "grpo")
        claim, paper = PAPER[name]
        lines.append(f"| {claim} | {paper} | VIMPO − GRPO {interval(ours, True)} | {verdict(ours)} |")
    lines += [
        "",
        "And against Dr. GRPO, to which the value loss comes close while β · KL is small (docs/vimpo.md):",
        "",
    ]
    lines += ["| rewards | VIMPO − Dr. GRPO |", "|---|---|"]
    lines += [f"| {TITLES[n]} | {interval(difference(p, 'vimpo', 'dr_grpo'), True)} |" for n, p in parts.items()]
    return [*lines, ""]


def ablation(part: Found) -> list[str]:
    """V3."""
    lines = [
        "# V3: what the actor branch does",
        "",
        f"**Scale.** As above, {part['budget']['amount']:,} tokens a run.",
        "",
        "| variant | what it is | learning rate | final accuracy | to Dr. GRPO | seconds a step |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ranked(part):
        against = "–" if name == "dr_grpo" else interval(difference(part, name, "dr_grpo"), True)
        edge = " (edge)" if part["tuning"]["algorithms"][name]["at_edge"] else ""
        lines.append(
            f"| `{name}` | {MEANING[name]} | {row['learning_rate']:g}{edge} | {interval(row['means']['final_accuracy'])} | "
            f"{against} | {row['means']['seconds_per_step']['mean']:.2f} |"
        )
    scaled, unscaled = difference(part, "vimpo", "value-only"), difference(part, "actor-0.005", "value-only")
    slow = difference(part, "value-only", "dr_grpo")
    return [
        *lines,
        "",
        "| claim | ours | verdict |",
        "|---|---|---|",
        f"| the actor branch speeds learning | scaled: {interval(scaled, True)} over value-only; "
        f"unscaled: {interval(unscaled, True)} | "
        f"{speeds(scaled)}, {speeds(unscaled)} |",
        f"| value-only is slow | value-only − Dr. GRPO {interval(slow, True)} | "
        f"{'it is slower' if slow['high'] < 0 else 'not seen'} |",
        "",
    ]


def speeds(value: Found) -> str:
    return "helps" if value["low"] > 0 else "harms" if value["high"] < 0 else "no difference seen"


def verdict(value: Found) -> str:
    return (
        "VIMPO ends higher" if value["low"] > 0 else "VIMPO ends lower" if value["high"] < 0 else "no difference seen"
    )


def difference(part: Found, ours: str, theirs: str) -> Found:
    """Paired difference of final accuracy, whichever way round it was written."""
    for d in part["differences"]:
        found = d["final_accuracy"]
        if (d["ours"], d["theirs"]) == (ours, theirs):
            return found  # type: ignore[no-any-return]
        if (d["ours"], d["theirs"]) == (theirs, ours):
            return {"mean": -found["mean"], "low": -found["high"], "high": -found["low"]}
    raise KeyError((ours, theirs))
