"""What is wrong with a run that can be seen before it has cost anything: prompts, lengths, answers, and the first rewards.

What can not work is a `UserError`; what is probably not meant is a warning that names the flag to change. docs/preflight.md
lists them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from vantage.errors import UserError
from vantage.prompting import check_thinking, encode_prompt

if TYPE_CHECKING:
    from vantage.config import TrainConfig
    from vantage.policy import Policy
    from vantage.tasks.base import Problem, Task
    from vantage.workload import Workload

LOOKED_AT = 256
"""Problems whose prompts and answers are looked at."""
SOLVED = 8
"""Problems whose known solutions are scored."""
SHOWN = 120
"""Characters of a prompt or response that are shown."""
GOLD_COLUMNS = ("answer", "solution", "ground_truth")
INSTRUCTED = re.compile(r"(instruct|chat|[-_]it\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """Something the user should know: what it is, and what to do about it."""

    level: Literal["note", "warning"]
    what: str
    do: str = ""

    def __str__(self) -> str:
        head = "warning: " if self.level == "warning" else ""
        return f"{head}{self.what}{f'; {self.do}' if self.do else ''}"


def before_training(policy: Policy, work: Workload, config: TrainConfig) -> list[Finding]:
    """Look at prompts and answers of the first problems; raises `UserError` for what can not work."""
    problems = list(islice(iter(work.task.train), LOOKED_AT))
    if config.enable_thinking is not None:
        check_thinking(policy.tokenizer, config.model)
    return [
        *check_prompts(policy, problems, config),
        *check_template(policy.tokenizer, config.model, problems, config.chat_template),
        *check_answers(work, problems),
        *(Finding("warning", found) for found in config.algo.warnings(config)),
    ]


def longest_prompt(policy: Policy, task: Task, config: TrainConfig) -> int:
    """Tokens of the longest of the task's first prompts."""
    problems = islice(iter(task.train), LOOKED_AT)
    return max((len(encode_prompt(policy.tokenizer, p.prompt, config.chat)) for p in problems), default=1)


def check_prompts(policy: Policy, problems: Sequence[Problem], config: TrainConfig) -> list[Finding]:
    """One rendered prompt with its length; raises `UserError` where the longest one leaves no room for a response."""
    ids = [encode_prompt(policy.tokenizer, p.prompt, config.chat) for p in problems]
    number = max(range(len(ids)), key=lambda i: len(ids[i]))
    longest, new = len(ids[number]), config.max_new_tokens or 0
    context = context_length(policy)
    if context is not None and longest >= context:
        raise UserError(
            f"--task {config.task}: the prompt of problem {number} has {longest} tokens, but the model has only "
            f"{context} positions; shorten or leave out such prompts"
        )
    if context is not None and longest + new > context:
        raise UserError(
            f"--max-new-tokens is {new}: with the longest of the first {len(ids)} prompts ({longest} tokens, problem "
            f"{number}) that is more than the model's {context} positions; give at most {context - longest}"
        )
    text = policy.tokenizer.decode(ids[0], skip_special_tokens=False)
    room = "" if context is None else f", the model has {context} positions"
    return [Finding("note", f"first prompt: {shown(text)} ({len(ids[0])} tokens; up to {new} new ones{room})")]


def context_length(policy: Policy) -> int | None:
    """Positions of the model, where its configuration says so."""
    found = getattr(policy.text_config, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None


def check_template(tokenizer: Any, model: str, problems: Sequence[Problem], chat_template: str) -> list[Finding]:
    """Plain prompts and a chat model: say what happens to them, or that nothing does."""
    plain = isinstance(problems[0].prompt, str)
    templated = bool(getattr(tokenizer, "chat_template", None))
    if plain and templated and chat_template == "auto":
        return [
            Finding(
                "note", "prompts become a user turn of the model's chat template", "--chat-template never leaves them"
            )
        ]
    if plain and templated:
        return [Finding("note", "the model's chat template is not used (--chat-template never)")]
    if plain and INSTRUCTED.search(model):
        return [
            Finding(
                "warning", f"--model {model} looks like a chat model, but its tokenizer has no chat template",
                "the prompts go in as plain text; use the tokenizer that belongs to the model",
            )
        ]  # fmt: skip
    return []


def check_answers(work: Workload, problems: Sequence[Problem]) -> list[Finding]:
    """Known solutions must be rewarded, and answers must be there and make sense to the task."""
    found = []
    faults = work.faults(problems)
    own = [work.task.complaint(p) for p in problems]
    complaints = [said for pair in zip(own, faults, strict=True) if (said := pair[0] or pair[1]) is not None]
    if complaints:
        found.append(
            Finding(
                "warning", f"{len(complaints)} of the first {len(problems)} problems have a fault: {complaints[0]}",
                "correct or leave them out",
            )
        )  # fmt: skip
    for name in GOLD_COLUMNS:
        empty = sum(name in p.columns and p.columns[name] in (None, "", []) for p in problems)
        if empty:
            found.append(
                Finding(
                    "warning", f"the column {name!r} is empty in {empty} of the first {len(problems)} problems",
                    "no response to these can be right",
                )
            )  # fmt: skip
    return [*found, *_check_solutions(work, problems)]


def _check_solutions(work: Workload, problems: Sequence[Problem]) -> list[Finding]:
    solved = [(p, s) for p in problems[:SOLVED] if (s := work.task.solution(p)) is not None]
    if not solved:
        return []
    from vantage.evaluation.scoring import repeat_columns

    chosen, texts = [p for p, _ in solved], [s for _, s in solved]
    scored = work.rewards(
        prompts=[p.prompt for p in chosen], completions=texts, completion_ids=[[] for _ in texts],
        columns=repeat_columns(chosen),
    )  # fmt: skip
    wrong = [i for i, total in enumerate(scored.total) if not total > work.reward_range[0]]
    if not wrong:
        return []
    first, got = wrong[0], scored.total[wrong[0]]
    return [
        Finding(
            "warning",
            f"the task's own solution of {shown(str(chosen[first].prompt))} earns "
            f"{'nothing that can be scored' if math.isnan(got) else f'{got:g}'}"
            + (f" ({scored.problems[0]})" if scored.problems else ""),
            "the reward function does not fit the task",
        )
    ]


def first_rollouts(
    texts: Sequence[str],
    outcome: Sequence[float],
    truncated: float,
    work: Workload,
    config: TrainConfig,
    notes: Sequence[str] = (),
) -> list[Finding]:
    """Look at the first responses: `outcome` is NaN where unscorable, `truncated` the share that hit the length limit."""
    count, found = len(texts), []
    if not count:
        return []
    limit = f"--max-new-tokens {config.max_new_tokens}"
    if truncated == 1:
        found.append(
            Finding("warning", f"all {count} responses ran into {limit}", "raise it: none could come to an end")
        )
    elif truncated > 0.5:
        found.append(Finding("warning", f"{truncated:.0%} of {count} responses ran into {limit}", "raise it"))
    empty = sum(not text.strip() for text in texts)
    if empty > count / 2:
        found.append(
            Finding("warning", f"{empty} of {count} responses are empty", "check prompt, chat template and end tokens")
        )
    known = [o for o in outcome if math.isfinite(o)]
    if len(known) < count / 2:
        reason = f" ({notes[0]})" if notes else ""
        some = "none" if not known else f"only {len(known)}"
        found.append(
            Finding("warning", f"{some} of {count} responses could be scored{reason}", "mend the reward function")
        )
    if known:
        found += _equal_rewards(texts, known, work, config)
    return found


def _equal_rewards(texts: Sequence[str], known: Sequence[float], work: Workload, config: TrainConfig) -> list[Finding]:
    low, high = config.reward_range or work.reward_range
    if min(known) < max(known):
        return []
    example = f"the first one is {shown(texts[0])}"
    if known[0] <= low:
        return [
            Finding(
                "warning", f"not one of {len(known)} responses was rewarded ({example})",
                "is this the form that the verifier wants? else give easier problems or a stronger model",
            )
        ]  # fmt: skip
    if known[0] >= high:
        return [Finding("warning", f"all {len(known)} responses got the full reward", "nothing is left to learn here")]
    return [
        Finding(
            "warning", f"all {len(known)} responses got the same reward {known[0]:g} ({example})",
            "a reward that does not vary teaches nothing",
        )
    ]  # fmt: skip


def first_step(row: Mapping[str, float], config: TrainConfig) -> list[Finding]:
    """Look at the first step's row: groups that teach nothing, and what the algorithm has to say."""
    own = [Finding("warning", what) for what in config.algo.first_step_warnings(row)]
    if row.get("groups/zero_advantage") == 1 or row.get("groups/filtered") == 1:
        return [
            Finding(
                "warning", "in the first step every prompt's rewards were equal: nothing was learned from it",
                f"give problems of middling difficulty, or more than {config.group_size} rollouts per prompt",
            ),
            *own,
        ]  # fmt: skip
    return own


def shown(text: str) -> str:
    """Text in quotes on one line, without its middle where it is long."""
    if len(text) > SHOWN:
        text = f"{text[: SHOWN * 2 // 3]} […] {text[-SHOWN // 3 :]}"
    return repr(text)
