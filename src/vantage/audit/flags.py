"""What does the command line of `vantage audit` mean? Its own flags, some of `vantage train`, options of each algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import MISSING
from functools import partial

from vantage.audit.plan import DEFAULT_ALGOS, EXACT_ALGOS, OWN_FIELDS, Audit, plan
from vantage.compare.flags import algorithm_options, unknown_with_options, with_options_of_algorithms
from vantage.settings.arguments import arguments_of, scan
from vantage.settings.commandline import ALIASES, convert
from vantage.settings.configfile import train_fields
from vantage.settings.fieldtypes import Field

SHARED = (
    "task", "reward", "reward_weights", "reward_range", "prompt_column", "answer_column", "prompt_template",
    "system_prompt", "domain_column", "chat_template", "enable_thinking", "seed", "max_new_tokens", "temperature", "top_p",
    "top_k", "stop", "generation_batch", "aggregation", "clip_low", "clip_high", "dual_clip", "policy_loss",
    "group_filter", "overlong_buffer", "overlong_penalty", "reference", "tokens_per_microbatch", "device", "precision",
    "attention", "learning_rate",
)  # fmt: skip
"""Flags of `vantage train` that mean something where a policy stands still."""
OWN = {
    field.name: field
    for field in (
        Field("model", str, "Policy: tiny, a model, a run directory, or enumerable: exact sums over every response.", MISSING),
        Field(
            "algos", tuple[str, ...],
            "Algorithms, with commas in between; each as --algo takes it. Default: all but vineppo and genac "
            f"({', '.join(DEFAULT_ALGOS)}); of an enumerable world {', '.join(EXACT_ALGOS)}.", (),
        ),
        Field("quick", bool, "A few small blocks: shows that everything runs, and finds large biases only.", False),
        Field("out", str | None, "Folder of the audit; what was measured there is taken. Default: one below runs/.", None),
        Field("rollouts_per_step", int | None, "Rollouts of a step. Default: 256, with --quick 64.", None),
        Field("rollouts_per_prompt", int | None, "Rollouts of a prompt, for all alike. Default: each algorithm's own.", None),
        Field("blocks", int | None, "Independent blocks of rollouts, each worth two steps. Default: 16, with --quick 6.", None),
        Field("fill_steps", int | None, "Steps that probes and critics learn from first. Default: 10, with --quick 3.", None),
        Field("dimensions", int | None, "Numbers that a gradient is projected to; 0 keeps all of them. Default: 8192.", None),
        Field("tolerance", float | None, "Bias that is small enough, as a share of the gradient's norm. Default: 0.01.", None),
        Field("confidence", float | None, "Confidence of intervals and verdicts. Default: 0.95.", None),
    )
}  # fmt: skip


def parse_audit(argv: Sequence[str], prog: str = "vantage audit") -> Audit:
    """Flags to a checked audit, without torch.

    Raises:
        UserError: any mistake, in one line.
        SystemExit: after --help.
    """
    shared = {name: field for name, field in train_fields().items() if name in SHARED}
    shared = {name: dataclasses.replace(field) for name, field in shared.items()}
    common = arguments_of(
        {**OWN, **shared}, positional=("model",), metavars={"model": "MODEL|RUN", "algos": "A,B,..."}, aliases=ALIASES
    )
    classes, arguments = with_options_of_algorithms(argv, common)
    names = [cls.name for cls in classes]
    found = scan(argv, arguments, partial(unknown_with_options, arguments=arguments, names=names))
    values = convert(found, arguments, prog, "Audit gradients: bias and variance of each algorithm on one policy.")
    algorithms = [cls(**algorithm_options(cls, values)) for cls in classes] if "algos" in found.given else None
    given = {name: values[name] for name in shared if name in found.given}
    sizes = {name: values[name] for name in OWN_FIELDS}
    return plan(values["model"], algorithms, quick=bool(values["quick"]), out=values["out"], **sizes, **given)
