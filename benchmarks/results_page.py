"""Makes docs/results.md from the JSON in results/: claim, the paper's figure, ours, scale, verdict. Nothing in it is typed.

python benchmarks/results_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

from common import RESULTS
from results_audit import audits
from results_genac import genac
from results_lab import lab
from results_later import later
from results_p5 import p5
from results_values import p6, ppo_forms, steps
from results_vimpo import vimpo
from results_words import Found, interval, listed, ranked, reached, share
from vantage.compare.statistics import paired_difference

CONTROL = RESULTS / "control-rloo-two-rollouts.json"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The whole page."""
    lines = list(HEAD)
    for path in sorted(RESULTS.glob("algorithms-*.json"), reverse=True):
        found = json.loads(path.read_text())
        control = CONTROL if found["configuration"]["shared"]["task"] == "sums" else None
        lines += [*head(found), *p1(found), *allocation(found, control), *p2(found), *tuning(found), *later(found)]
    return "\n".join([*lines, *(line for section in SECTIONS for line in section())])


SECTIONS = (lab, p5, p6, steps, ppo_forms, vimpo, genac, audits)

HEAD = (
    "# Results",
    "",
    "Made by `benchmarks/results_page.py` from `benchmarks/results/*.json`, which hold every raw number with versions, machine and",
    "seeds. Claims of papers are repeated in miniature; what came out stands here as it came out.",
    "",
)


def head(found: Found) -> list[str]:
    seeds, shared = found["seeds"], found["configuration"]["shared"]
    machine = found["machine"]
    return [
        f"# P1 and P2 on `{shared['task']}`",
        "",
        f"**Scale.** Model `{shared['model']}` (0.8 million parameters) on `{shared['task']}`, {shared['rollouts_per_step']} rollouts a "
        f"step, {found['budget']['amount']:,} generated",
        f"{found['budget']['unit']} a run, {len(seeds['reporting'])} reporting seeds ({listed(seeds['reporting'])}), learning rates tuned "
        f"over the same grid on other seeds",
        f"({listed(seeds['tuning'])}). Intervals are {found['interval']}; with three seeds they are wide. {machine['cores']} cores, "
        f"{machine['threads'] or 'all'} thread(s) a run;",
        "two runs at a time shared the machine, so seconds are comparable within a row's pair of runs only roughly.",
        "",
    ]


def p1(found: Found) -> list[str]:
    """POISE matches DAPO with less compute."""
    ours = next(d for d in found["differences"] if (d["ours"], d["theirs"]) == ("poise", "dapo"))["final_accuracy"]
    reach = found["algorithms"]["poise"]["to_target"]
    lines = [
        "## P1: POISE matches DAPO with less compute (POISE Table 1, §4.2)",
        "",
        "| algorithm | learning rate | final accuracy | steps | tokens to DAPO's accuracy | of DAPO's | seconds to it | of DAPO's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ranked(found):
        tokens, seconds = row["to_target"]["tokens"], row["to_target"]["seconds"]
        lines.append(
            f"| `{name}` | {row['learning_rate']:g} | {interval(row['means']['final_accuracy'])} | "
            f"{row['means']['steps']['mean']:.0f} | {reached(tokens, 1000, 'k')} | {share(tokens)} | {reached(seconds, 1, ' s')} | "
            f"{share(seconds)} |"
        )
    accuracy = (
        "POISE ends higher"
        if ours["low"] > 0
        else "POISE ends lower"
        if ours["high"] < 0
        else "no difference in final accuracy is seen"
    )
    ratio = reach["tokens"]["share_of_reference"]
    saved = (
        "DAPO's accuracy is not reached by the median seed"
        if ratio is None
        else f"it is reached after {ratio:.2f} of DAPO's tokens"
    )
    verdict = "holds here" if ours["high"] >= 0 and ratio is not None and ratio < 1 else "does not hold here"
    return [
        *lines,
        "",
        f'Target: {found["target"]["accuracy"]:.3f}, the {found["target"]["why"]}. "To" is the median over seeds, from the straight lines '
        'between evaluations; "of DAPO\'s"',
        "divides by what DAPO's whole runs spend. For `dapo` itself that is below 1 where it ends on a plateau.",
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| accuracy as DAPO's | 0.500 against 0.508 (4 B), 0.303 against 0.296 (1.5 B), Avg@32 | POISE − DAPO {interval(ours, True)} | "
        f"{accuracy} |",
        f"| in 3/4 of its time | 18 h against 24 h, 36 h against 49 h | {share(reach['tokens'])} of the tokens, {share(reach['seconds'])} of "
        f"the seconds | {saved}: the claim {verdict}, at this scale |",
        "",
        "Paired differences of final accuracy over the same seeds:",
        "",
        "| | difference |",
        "|---|---|",
        *(f"| `{d['ours']}` − `{d['theirs']}` | {interval(d['final_accuracy'], True)} |" for d in found["differences"]),
        "",
    ]


def allocation(found: Found, control: Path | None) -> list[str]:
    """Is it the probe, or only that POISE sees four times as many prompts? RLOO with two rollouts a prompt says it."""
    if control is None:
        return []
    other = json.loads(control.read_text())
    ours, theirs = (
        {c["seed"]: c["final_accuracy"] for c in f["cells"] if c["algorithm"] == n}
        for f, n in ((found, "poise"), (other, "rloo"))
    )
    difference = paired_difference(ours, theirs)
    assert difference is not None
    rate, two = other["algorithms"]["rloo"]["learning_rate"], other["algorithms"]["rloo"]["means"]
    return [
        "**Control.** POISE takes two rollouts a prompt, the group methods eight, so it also sees four times as many prompts. RLOO with two "
        f"rollouts a prompt (learning rate {rate:g},",
        f"the same seeds and budget; `vantage compare --algos rloo --rollouts-per-prompt 2`) ends at {interval(two['final_accuracy'])}; "
        f"POISE − that: {interval(difference.as_dict(), True)}.",
        "At the same allocation the probe's baseline is what differs."
        if difference.low > 0
        else "At the same allocation no difference is seen.",
        "",
    ]


def p2(found: Found) -> list[str]:
    """Lower and steadier gradient norm than DAPO; variance reduction about 30 %."""
    lines = [
        "## P2: lower and steadier gradient norm; less variance (POISE Figures 3 and 4)",
        "",
        "| algorithm | gradient norm, mean over steps | its deviation over steps / mean | variance reduction | MAE | Pearson |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ranked(found):
        means = row["means"]
        lines.append(
            f"| `{name}` | {interval(means['grad_norm_mean'])} | {interval(means['grad_norm_relative_std'])} | "
            f"{interval(means['value/variance_reduction'])} | {interval(means['value/mae'])} | {interval(means['value/pearson'])} |"
        )
    pair = next(d for d in found["differences"] if (d["ours"], d["theirs"]) == ("poise", "dapo"))
    steadier = pair["grad_norm_relative_std"]
    reduction = found["algorithms"]["poise"]["means"]["value/variance_reduction"]
    said = "steadier" if steadier["high"] < 0 else "less steady" if steadier["low"] > 0 else "no difference seen"
    return [
        *lines,
        "",
        "Norms of different losses have different scales (a mean over tokens against a sum over a constant), so the mean says little "
        "across rows; the relative deviation",
        "compares. `value/*` of `dapo` is over the groups that its filter leaves, which are the hard ones, and that of `reinforce` is of "
        "the batch mean.",
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| steadier gradient than DAPO | Figure 3 | relative deviation, POISE − DAPO {interval(steadier, True)} | {said} |",
        f"| the probe removes about 30 % of the variance | Figure 4 | {interval(reduction)}, mean over all steps, the first ones "
        f"included | {'less than the paper' if reduction['high'] < 0.3 else 'as the paper' if reduction['low'] <= 0.3 else 'more'} |",
        "",
    ]


def tuning(found: Found) -> list[str]:
    """Every tuning run."""
    table = found["tuning"]
    grid = table["grid"]
    lines = [
        "## Tuning",
        "",
        "Final accuracy on the tuning seeds; the chosen rate is in bold.",
        "",
        "| algorithm | " + " | ".join(f"{rate:g}" for rate in grid) + " |",
        "|---" * (len(grid) + 1) + "|",
    ]
    for name, row in table["algorithms"].items():
        cells = [
            ("**{:.3f}**" if r["learning_rate"] == row["chosen"] else "{:.3f}").format(r["accuracy"])
            for r in row["rates"]
        ]
        lines.append(f"| `{name}`{' (edge of the grid)' if row['at_edge'] else ''} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
