"""The page's parts on training with generative critics: G4, schools, and cost, from results/genac-*.json."""

from __future__ import annotations

import numpy as np

from results_words import Found, counted, held, interval
from vantage.compare.statistics import mean_interval, paired_difference
from vantage.genac.lessons import CHARACTER_BATCH, CHARACTER_STEPS

BEATEN = ("ppo", "grpo", "rloo")
"""What the paper's summaries say GenAC beats: PPO, and methods without a value, of which they name these two."""


def g4(found: Found) -> list[str]:
    """Accuracy in training."""
    shared = found["configuration"]["shared"]
    lines = [
        "# G4: training with a generative critic (GenAC, RL results)",
        "",
        f"**Scale.** `tiny` on `sums`, {shared['rollouts_per_step']} rollouts a step, "
        f"{found['budget']['amount']:.0f} steps, one learning "
        f"rate ({shared['learning_rate']:g}) for all, nobody tuned;",
        f"the same prompts, {shared['eval_problems']} held-out problems. Intervals are {found['interval']}. "
        f"GenAC starts with the embedded "
        "critic. Seconds were taken beside other load, uneven over the runs: the least loaded run of each is shown.",
        "",
        "| algorithm | runs | start | final accuracy | gain | tokens | of them for values | seconds a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["algorithms"].items():
        if not row["finished"]:
            continue
        means = row["means"]
        done = [c for c in found["cells"] if c["algorithm"] == name and c["status"] == "finished"]
        lines.append(
            f"| `{name}` | {row['finished']} of {row['of']} | {means['start_accuracy']['mean']:.3f} | "
            f"{interval(means['final_accuracy'])} | "
            f"{interval(means['gain'], True)} | {means['tokens']['mean']:,.0f} | "
            f"{means['tokens_value_extra']['mean']:,.0f} | "
            f"{min(c['seconds_per_step'] for c in done):.1f} |"
        )
    lines += ["", "| claim | paper | ours | verdict |", "|---|---|---|---|"]
    lines += [
        f"| ends higher than `{other}` at equal steps | {'yes' if other in BEATEN else '–'} | "
        f"GenAC − `{other}` {interval(change, True)} | {apart(change)} |"
        for other in found["algorithms"]
        if other != "genac" and (change := lead(found, "genac", other)) is not None
    ]
    lines += ["", "The differences are paired over the seeds; those of all other pairs are in `genac-rl.json`."]
    curves = {name: curve(found, name) for name in found["algorithms"]}
    steps = sorted({step for points in curves.values() for step in points})
    lines += [
        "",
        "Accuracy by steps (mean over the runs that there are), with thousands of tokens in parentheses:",
        "",
        "| algorithm | " + " | ".join(f"step {s}" for s in steps) + " |",
        "|---" * (1 + len(steps)) + "|",
        *(
            f"| `{name}` | " + " | ".join(point(points.get(s)) for s in steps) + " |"
            for name, points in curves.items()
            if points
        ),
        "",
    ]
    return lines


def lead(found: Found, one: str, other: str) -> Found | None:
    """Paired difference of final accuracy, one − other."""
    paired = paired_difference(*(final(found, name) for name in (one, other)))
    return None if paired is None else paired.as_dict()


def final(found: Found, name: str) -> dict[int, float]:
    """Final accuracy by seed."""
    cells = (c for c in found["cells"] if c["algorithm"] == name and c["status"] == "finished")
    return {c["seed"]: c["final_accuracy"] for c in cells}


def siblings(found: Found) -> list[str]:
    """Both critics at the same number of rollouts a prompt."""
    parts: Found = found["rollouts_per_prompt"]
    shared = next(iter(parts.values()))["configuration"]["shared"]
    rollouts = shared["rollouts_per_step"]
    lines = [
        "# G4 at the same number of rollouts a prompt",
        "",
        f"**Scale.** As G4: {rollouts} rollouts a step, {shared['steps']} steps, the same seeds for both. By their "
        "defaults GenAC takes 8 of each prompt and PPO one,",
        "so a step of the one sees 16 prompts, one of the other 128.",
        "",
        "| rollouts a prompt | prompts a step | seeds | `genac` | `ppo` | `genac` − `ppo` | tokens of `genac` |",
        "|---|---|---|---|---|---|---|",
    ]
    better = []
    for number, part in parts.items():
        means = {name: part["algorithms"][name]["means"] for name in ("genac", "ppo")}
        change = lead(part, "genac", "ppo")
        assert change is not None, "both critics have the same seeds"
        better.append((change["mean"] > 0, change["low"] is not None and change["low"] > 0))
        seeds = len(final(part, "genac"))
        lines.append(
            f"| {number} | {rollouts // int(number)} | {seeds} | {interval(means['genac']['final_accuracy'])} | "
            f"{interval(means['ppo']['final_accuracy'])} | {interval(change, True)} | {means['genac']['tokens']['mean']:,.0f} |"
        )
    few, many = min(parts, key=int), max(parts, key=int)
    gains = {name: paired_difference(final(parts[few], name), final(parts[many], name)) for name in ("genac", "ppo")}
    wider = [(g is not None and g.mean > 0, g is not None and g.low is not None and g.low > 0) for g in gains.values()]
    said = ", ".join(f"`{name}` {interval(g.as_dict(), True)}" for name, g in gains.items() if g is not None)
    return [
        *lines,
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| GenAC ends higher than PPO on as many prompts | yes | {counted(better, 'higher in', 'settings')} | "
        f"{held(better, 'in every setting')} |",
        f"| {few} rollout a prompt beats {many} at equal rollouts | – | {said} | {held(wider, 'for both')} |",
        "",
    ]


def pretraining(found: Found) -> list[str]:
    """What schooled critics gain from outcomes, beside a discriminative critic of the same states."""
    worlds: Found = found["worlds"]
    last = LAST if not found["quick"] else 1
    lines = [
        "# Pretraining of schooled critics on outcomes, on every embedded world",
        "",
        f"**Scale.** `vantage critic pretrain`, {found['steps']} steps of {found['rollouts']} rollouts by the resting policy, "
        "from the critic of the world's own school.",
        "Beside it learns, from the same states and outcomes, a discriminative critic of the policy's size (PPO's default). "
        "Squared errors against",
        "single outcomes on each step's states before they are learned from, as in the gates: the first step, and the mean of "
        f"the last {last}, with its",
        "95 % interval over these steps. The last column is the generative critic's error against Monte-Carlo truth "
        "afterwards, less that of the best constant.",
        "",
        "| world | first: critic | constant | last: critic | discriminative | constant | critic − discriminative | "
        "critic − constant | against truth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    below: dict[str, list[tuple[bool, bool]]] = {"constant": [], "rival": []}
    for world, row in worlds.items():
        rows, first = row["steps"][-last:], row["steps"][0]
        changes = {name: over_steps([r["brier_penalised"] - r[f"brier_{name}"] for r in rows]) for name in below}
        for name, change in changes.items():
            below[name].append((change["mean"] < 0, change["high"] is not None and change["high"] < 0))
        means = [np.mean([r[name] for r in rows]) for name in ("brier_penalised", "brier_rival", "brier_constant")]
        truth = said(row["against_truth"], "mse_noise_corrected_less_that_of_the_constant", signed=True)
        lines.append(
            f"| `{world}` | {first['brier_penalised']:.3f} | {first['brier_constant']:.3f} | "
            f"{' | '.join(f'{m:.3f}' for m in means)} | {interval(changes['rival'], True)} | "
            f"{interval(changes['constant'], True)} | {truth} |"
        )
    return [
        *lines,
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| pretrained, it is below the best constant | yes | {counted(below['constant'], 'below in', 'worlds')} | "
        f"{held(below['constant'], 'in every world')} |",
        f"| pretrained, it is below a discriminative critic of the same states | yes | "
        f"{counted(below['rival'], 'below in', 'worlds')} | {held(below['rival'], 'in every world')} |",
        "",
    ]


LAST = 10
"""Steps at the end of pretraining over which errors are averaged."""


def over_steps(values: list[float]) -> Found:
    """Mean of one difference a step with its t-interval."""
    found = mean_interval(values)
    assert found is not None, "pretraining has steps"
    return found.as_dict()


def apart(change: Found) -> str:
    """What a paired difference says of the claim that it is above 0."""
    if change["low"] is None:
        return "one seed says nothing"
    return "holds here" if change["low"] > 0 else "does not hold here" if change["high"] < 0 else "no difference seen"


def curve(found: Found, name: str) -> dict[int, tuple[float, float]]:
    """Mean accuracy and tokens at each evaluated step."""
    points: dict[int, list[tuple[float, float]]] = {}
    for cell in found["cells"]:
        if cell["algorithm"] == name and cell["status"] == "finished":
            for e in cell["evaluations"]:
                points.setdefault(e["step"], []).append((e["accuracy"], e["tokens"]))
    return {s: (float(np.mean([a for a, _ in p])), float(np.mean([t for _, t in p]))) for s, p in points.items()}


def point(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} ({value[1] / 1000:.0f}k)"


def school(found: Found) -> list[str]:
    """Critics that have only been taught, on every embedded world."""
    rows = [(world, course, row) for world, courses in found["worlds"].items() for course, row in courses.items()]
    states = ", ".join(f"{next(iter(c.values()))['states']} on `{w}`" for w, c in found["worlds"].items())
    lines = [
        "# Critics that have been to school and seen no outcome, on every embedded world",
        "",
        f"**Scale.** `vantage critic score` on states of the policy's responses to {rows[0][2]['problems']} held-out "
        f"problems ({states}), truth by {rows[0][2]['against_truth']['continuations']:.0f} continuations,",
        "its noise taken out; one completion a state. `own` is the course that `vantage train --algo genac` holds by itself:",
        f"{CHARACTER_STEPS:,} steps of {CHARACTER_BATCH} critiques by the world's oracle, half of them of the policy's own "
        "states;",
        "`shipped` is the same course for longer, `again` what its command made on another day: the same lessons in the same "
        "order, not the same bits.",
        "CPU seconds of all threads, beside other load but for `tools`.",
        "Intervals: bootstrap over problems.",
        "",
        "| world | course | CPU seconds | parsed | squared error | its oracle | best constant | critic − constant | r |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    better = []
    for world, course, row in rows:
        truth, seconds = row["against_truth"], row["school"].get("cpu_seconds")
        name = "mse_noise_corrected"
        errors = (name, *(f"mse_of_the_{who}_noise_corrected" for who in ("oracle", "best_constant")))
        cells = [said(truth, n) for n in errors]
        difference = said(truth, f"{name}_less_that_of_the_constant", signed=True)
        high = truth["intervals"][f"{name}_less_that_of_the_constant"][1]
        better.append((truth[f"{name}_less_that_of_the_constant"] < 0, high < 0))
        lines.append(
            f"| `{world}` | {course} | {'–' if seconds is None else f'{seconds:.0f}'} | {row['completions_parsed']:.3f} | "
            f"{' | '.join(cells)} | {difference} | {said(truth, 'pearson')} |"
        )
    return [
        *lines,
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        f"| a taught critic is below the best constant | – | {counted(better, 'below in', 'rows')} | "
        f"{held(better, 'in every row')} |",
        "",
    ]


def said(truth: Found, name: str, signed: bool = False) -> str:
    """A number of `vantage critic score` with its interval."""
    low, high = truth["intervals"][name]
    if truth[name] is None:
        return "–"
    return interval({"mean": truth[name], "low": low, "high": high}, signed)


def cost(found: Found) -> list[str]:
    """What a step costs."""
    shape, sums = found["shape"], found["sums"]
    rows, lengths = sums["steps"], shape["shape"]
    base = rows["ppo"]
    met = [shape["model"]["genac"] <= shape["bars"]["model"], shape["over_model"] <= shape["bars"]["over_model"]]
    words = ["met" if m else "MISSED" for m in met]
    return [
        "# Cost of a step: GenAC, PPO, VinePPO",
        "",
        f"**At the shape of the FLOP model**: responses of {lengths['response']} tokens, prompts of "
        f"{lengths['prompt']}, a template of "
        f"{lengths['template']}, {lengths['states']} states a response,",
        f"answers of {lengths['answer']}; a Qwen3 model of width {shape['width']} with random weights, "
        f"{shape['rollouts']} rollouts, one CPU "
        f"thread, CPU seconds, median of {len(shape['pairs'])} pairs of steps.",
        "",
        "| GenAC over PPO | | bar |",
        "|---|---|---|",
        f"| FLOP model (18NL for PPO; 10NL + 8SN(context + answer) for GenAC) | {shape['model']['genac']:.2f} | "
        f"≤ {shape['bars']['model']}: "
        f"{words[0]} |",
        f"| FLOPs of matrix products, as torch counts them | {shape['flops_counted']:.2f} | |",
        f"| seconds | {shape['seconds']:.2f} ({', '.join(f'{p:.2f}' for p in shape['pairs'])}) | |",
        f"| seconds over the model | {shape['over_model']:.2f} | ≤ {shape['bars']['over_model']}: {words[1]} |",
        "",
        "What torch counts is above the model for two reasons: nothing is run twice here, so PPO takes 16NL; and few rows of "
        "unequal length are",
        "padded to the longest of their micro-batch.",
        "",
        f"**On `sums`**, defaults, {sums['rollouts']} rollouts, the embedded policy and critic: responses are "
        f"short and answers as long as they,",
        "so the critic is nearly all of GenAC's cost here.",
        "",
        "| algorithm | tokens of rollouts | generated for values | GFLOPs | of PPO's | CPU seconds | of PPO's |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {row['tokens/generated']:,.0f} | {row['tokens/value_extra']:,.0f} | {row['flops'] / 1e9:,.0f} | "
            f"{row['flops'] / base['flops']:.1f} | {row['cpu_seconds']:.1f} | "
            f"{row['cpu_seconds'] / base['cpu_seconds']:.1f} |"
            for name, row in rows.items()
        ),
        "",
        "The paper has about 2.1 times PPO for GenAC and over 4 times for VinePPO, its lengths and unit unknown.",
        "",
    ]
