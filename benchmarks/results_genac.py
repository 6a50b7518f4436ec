"""The page's parts on the values of generative critics, G1 to G3, from results/genac-*.json; what has no file is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import RESULTS
from results_genac_training import cost, g4, pretraining, school, siblings
from results_words import Found, counted, held, interval
from vantage.lab.metrics import resampled_rows
from vantage.lab.ranking import SIZES, pool_score

Floats = NDArray[np.float64]
SHIFTS = {"none": "none", "moderate": "more terms", "high": "three digits"}
SEEDS = "mean over seeds"


def genac() -> list[str]:
    """All sections."""
    parts: dict[str, Callable[[Found], list[str]]] = {
        "critics": g1_g2, "icc": g3, "rl": g4, "siblings": siblings, "school": school, "pretrain": pretraining, "cost": cost,
    }  # fmt: skip
    paths = {name: RESULTS / f"genac-{name}.json" for name in parts}
    return [
        line
        for name, make in parts.items()
        if paths[name].exists()
        for line in make(json.loads(paths[name].read_text()))
    ]


# --- numbers --------------------------------------------------------------------------------------------------------------


def first_of(values: Sequence[Any]) -> Floats:
    """The first sample of each state, NaN where it could not be parsed."""
    firsts = [v[0] if isinstance(v, list) else v for v in values]
    return np.array([math.nan if v is None else v for v in firsts], dtype=np.float64)


def mean_of(values: Sequence[Any]) -> Floats:
    """Mean of the samples of each state that could be parsed."""
    rows = [[x for x in v if x is not None] for v in values]
    return np.array([sum(r) / len(r) if r else math.nan for r in rows], dtype=np.float64)


def corrected(predicted_N: Floats, rows: Sequence[Found]) -> Floats:
    """Squared error of each state less the noise of its truth; a failure counts 1."""
    truth_N, variance_N = (np.array([r[name] for r in rows], dtype=np.float64) for name in ("truth", "variance"))
    return np.where(np.isfinite(predicted_N), (predicted_N - truth_N) ** 2 - variance_N, 1.0)


def over_prompts(error_N: Floats, rows: Sequence[Found]) -> dict[str, float]:
    """Mean with its 95 % interval by bootstrap over prompts."""
    prompt_N = np.array([r["prompt"] for r in rows])
    found = [float(error_N[chosen].mean()) for chosen in resampled_rows(prompt_N)]
    low, high = np.quantile(found, (0.025, 0.975))
    return {"mean": float(error_N.mean()), "low": float(low), "high": float(high)}


def seeds_mean(runs: Sequence[Any], rows: Sequence[Found]) -> Floats:
    """Errors [N] of several trainings, averaged over them."""
    found: Floats = np.mean([corrected(first_of(run), rows) for run in runs], axis=0)
    return found


# --- G1 and G2 ------------------------------------------------------------------------------------------------------------


def g1_g2(found: Found) -> list[str]:
    return [*g1(found), *g2(found)]


def g1(found: Found) -> list[str]:
    """Error against truth at three shifts."""
    sizes, trained = found["sizes"], found["trained"]
    lines = [
        "# G1: a generative critic's error against a discriminative one's (GenAC, value approximation)",
        "",
        f"**Scale.** Policy `tiny` on `sums`, at rest (success rate {found['rate']:.2f}). Both critics have its "
        f"0.8 million",
        f"parameters and learn from the same states of {sizes['steps'] * sizes['step_rollouts']} rollouts, "
        f"{len(trained)} seeds: the "
        f"discriminative one (a copy of the trunk,",
        f"cross-entropy on outcomes) {found['tuning']['epochs']} passes at {found['tuning']['rate']:g}, the best of "
        f"{len(sizes['rates'])} learning rates and up to {sizes['epochs']} passes by its error on other problems of",
        f"another seed; the generative one (embedded critic) one pass of REINFORCE, {sizes['steps']} steps. Truth: "
        f"{sizes['continuations']} continuations, their noise taken out. One completion",
        "a state; a failure counts as an error of 1. Intervals: bootstrap over prompts. The generative critic "
        "has also been to",
        "school (critiques of the world's oracle, half of them of this policy's own states, no outcomes), "
        "which the discriminative",
        "one has no way to attend: the claim is about the whole method, as in the paper, not about the form of "
        "the output alone.",
        "",
        "| shift | states | variance of the truth | constant (success rate) | discriminative | generative, "
        f"taught only | generative | generative, mean of {sizes['samples']} | "
        "generative − discriminative |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ratios, below = {}, []
    for name, said in SHIFTS.items():
        rows = found["states"][name]
        truth_N = np.array([r["truth"] for r in rows])
        ours, theirs = (seeds_mean([t[kind][name] for t in trained], rows) for kind in ("generative", "discriminative"))
        constant = corrected(np.full(len(rows), found["rate"]), rows)
        taught = corrected(first_of(found["taught"][name]), rows)
        ratios[name] = float(ours.mean() / theirs.mean())
        several: Floats = np.mean([corrected(mean_of(t["generative"][name]), rows) for t in trained], axis=0)
        cells = [interval(over_prompts(e, rows)) for e in (constant, theirs, taught, ours, several)]
        difference = over_prompts(ours - theirs, rows)
        below.append(difference["high"] < 0)
        lines.append(
            f"| {said} | {len(rows)} | {truth_N.var():.3f} | {' | '.join(cells)} | {interval(difference, True)} |"
        )
    edge = found["tuning"]["rate"] == max(sizes["rates"]) or found["tuning"]["epochs"] == sizes["epochs"]
    grows = ratios["none"] > ratios["moderate"] > ratios["high"]
    lines += [
        "",
        "Where the truth hardly varies (variance near 0) this policy fails nearly always, and the error is what a "
        "critic says above 0.",
    ]
    if edge:
        lines.append(
            "The discriminative critic was best at an edge of its grid: more passes or data might lower its error."
        )
    return [
        *lines,
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| lower error than a discriminative critic | at every shift | error over its error: {listed_ratios(ratios)} | "
        f"{'holds here' if all(below) else f'holds beyond its interval at {sum(below)} of {len(below)}'} |",
        f"| the gap grows with the shift, above 50 % at the hardest | MSE cut by more than half on AIME24 | cut by "
        f"{100 * (1 - ratios['high']):.0f} % at three digits | "
        f"{'holds here' if grows and ratios['high'] < 0.5 else 'does not hold here'} |",
        "",
    ]


def listed_ratios(ratios: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f} ({SHIFTS[name]})" for name, value in ratios.items())


PAIRS = "pairs in the right order"
MEASURES = ("top-1", PAIRS, "reward lost by the choice")
"""What `ranks` gives of a pool, in this order."""


def g2(found: Found) -> list[str]:
    """Which of several next steps is best."""
    rows, trained, sizes = found["states"]["pools"], found["trained"], found["sizes"]
    kinds: dict[str, list[Floats]] = {
        "discriminative": [first_of(t["discriminative"]["pools"]) for t in trained],
        "generative, one sample": [first_of(t["generative"]["pools"]) for t in trained],
        f"generative, mean of {sizes['samples']}": [mean_of(t["generative"]["pools"]) for t in trained],
    }
    pools = len({r["pool"] for r in rows})
    lines = [
        "# G2: which next step is best (GenAC, top-1 ranking)",
        "",
        f"**Scale.** {pools} states of the training distribution where success is open, {sizes['pool']} different next "
        "steps each, drawn at a higher temperature;",
        f"truth by {sizes['continuations']} continuations, critics of G1 ({len(trained)} seeds). Pools of other sizes are "
        "subsets of these. Top-1: credit of the critic's top candidates,",
        "|T ∩ B|/|T| with ties; pairs: those of different truth, half for a tie; reward lost: the best truth less that of the "
        "critic's choice. Pools of equal truths are left out. Intervals: bootstrap over states.",
        "",
        "| measure | pool | a guess | " + " | ".join(kinds) + " | the last − discriminative |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    compared = {size: ranking(kinds, rows, size) for size in SIZES if size <= sizes["pool"]}
    for i, measure in enumerate(MEASURES):
        for size, (cells, _) in compared.items():
            if measure == PAIRS and size < max(compared):
                continue  # subsets hold the same pairs, so it is the same number up to the draw of subsets
            lines.append(f"| {measure} | {size} | {' | '.join(cells[i])} |")
    better = [ahead for _, ahead in compared.values() if ahead is not None]
    return [
        *lines,
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| better at every pool size | yes | {counted(better, 'better at', 'sizes')} | {held(better, 'at every size')} |",
        "",
    ]


def ranking(
    kinds: dict[str, list[Floats]], rows: Sequence[Found], size: int
) -> tuple[list[list[str]], tuple[bool, bool] | None]:
    """The cells of each measure at a pool size; whether all generative kinds are ahead in top-1 (mean; interval)."""
    guess_PM = ranks([np.zeros(len(rows))], rows, size)
    if not len(guess_PM):
        return [["–"] * (len(kinds) + 2) for _ in MEASURES], None
    prompts = [{"prompt": i} for i in range(len(guess_PM))]
    first_PM, *others_PM = (ranks(runs, rows, size) for runs in kinds.values())
    cells = []
    for i in range(len(MEASURES)):
        each = [interval(over_prompts(scores_PM[:, i], prompts)) for scores_PM in (first_PM, *others_PM)]
        apart = interval(over_prompts((others_PM[-1] - first_PM)[:, i], prompts), signed=True)
        cells.append([f"{guess_PM[:, i].mean():.3f}", *each, apart])
    ahead = [over_prompts((other_PM - first_PM)[:, 0], prompts) for other_PM in others_PM]
    return cells, (all(d["mean"] > 0 for d in ahead), all(d["low"] > 0 for d in ahead))


def ranks(runs: Sequence[Floats], rows: Sequence[Found], size: int) -> Floats:
    """The measures [P, 3] of the pools' subsets of a size, averaged over trainings; pools of equal truths are left out."""
    found = []
    for pool in sorted({r["pool"] for r in rows}):
        mine = [i for i, r in enumerate(rows) if r["pool"] == pool]
        truth_N = np.array([rows[i]["truth"] for i in mine])
        scores = [pool_score(run[mine], truth_N, size) for run in runs]
        known = [(s.credit, s.pairwise, s.regret) for s in scores if s is not None]
        if known:
            found.append(np.mean(known, axis=0))
    return np.array(found).reshape(-1, len(MEASURES))


# --- G3 -------------------------------------------------------------------------------------------------------------------


def g3(found: Found) -> list[str]:
    """With and without facts about the solver."""
    states, sizes = found["states"], found["sizes"]
    stages = {"untaught": "base", "taught": "sft", "taught and reinforced": "rl"}
    lines = [
        "# G3: In-Context Conditioning (GenAC, ablation)",
        "",
        "**Scale.** Two solvers, `tiny` at temperature "
        + " and ".join(f"{t:g} (success rate {found['rates'][w]:.2f})" for w, t in found["temperatures"].items())
        + ", one critic for both, with and without",
        f"the success rate in its prompt. Taught: the embedded critic after {sizes['school']} more steps of "
        f"critiques with its own form of "
        "the prompt (it had been taught with the facts before);",
        f"reinforced: {sizes['icc_steps']} step(s) for each solver, {sizes['seeds']} seeds. Untaught: a copy of "
        f"the policy. Error as in G1.",
        "",
        "| critic | solver | with the facts | without | with − without | parsed (with, without) |",
        "|---|---|---|---|---|---|",
    ]
    better = []
    for said, stage in stages.items():
        for who, rows in states.items():
            runs = {on: g3_runs(found[on], stage, who) for on in ("on", "off")}
            errors = {on: seeds_mean(some, rows) for on, some in runs.items()}
            parsed = [np.mean([np.isfinite(first_of(r)).mean() for r in some]) for some in runs.values()]
            difference = over_prompts(errors["on"] - errors["off"], rows)
            if max(parsed) > 0:
                better.append((difference["mean"] < 0, difference["high"] < 0))
            lines.append(
                f"| {said} | temperature {found['temperatures'][who]:g} | {interval(over_prompts(errors['on'], rows))} | "
                f"{interval(over_prompts(errors['off'], rows))} | {interval(difference, True)} | "
                f"{parsed[0]:.2f}, {parsed[1]:.2f} |"
            )
    moved = [r["moved"] for r in found["on"]["reinforced"]]
    shown = [float(rho) for rho in moved[0]]
    means = [[float(np.nanmean(mean_of(values))) for values in run.values()] for run in moved]
    slopes = [float(np.polyfit(shown, row, 1)[0]) for row in means]
    average = np.mean(means, axis=0)
    silent = len(stages) * len(states) - len(better)
    unread = f"; in {silent} more no answer could be read" if silent else ""
    return [
        *lines,
        "",
        "Mean prediction for prompts, by the success rate that is shown: "
        + ", ".join(f"{m:.2f} ({rho:g})" for rho, m in zip(shown, average))
        + f"; slope {np.mean(slopes):.2f} (seeds: {', '.join(f'{s:.2f}' for s in slopes)}).",
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| the facts lower the error in every row | yes | {counted(better, 'lower in', 'rows')}{unread} | "
        f"{held(better, 'in every row')} |",
        f"| the prediction follows the shown rate | – | slope {np.mean(slopes):.2f} | "
        f"{'in the right direction' if min(slopes) > 0 else 'not at every seed'} |",
        "",
    ]


def g3_runs(part: Found, stage: str, who: str) -> list[Any]:
    if stage == "rl":
        return [run["values"][who] for run in part["reinforced"]]
    return [part["taught"][stage][who]]
