"""What does a task look like? Sample problems with a right and a wrong response, scored by the real reward functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vantage.errors import UserError
from vantage.tasks import get_task, task_names
from vantage.tasks.base import Problem, Task
from vantage.tasks.catalog import CATALOG
from vantage.tasks.readers import is_file_spec
from vantage.workload import Workload

if TYPE_CHECKING:
    from vantage.evaluation.ballots import Ballot

SHOWN = 300
"""Characters of a prompt or response that a cell of the table shows."""


def list_tasks() -> None:
    """Print the tasks that `--task` takes by name, and the other forms it takes."""
    table = Table("task", "training problems", "longest response", "rewards", box=None)
    for name in task_names():
        if name in CATALOG:
            continue
        try:
            task = get_task(name)
        except UserError as error:  # a broken plugin must not hide the others
            table.add_row(name, Text(str(error)), "", "")
            continue
        low, high = task.reward_range
        longest = f"{task.max_new_tokens} tokens" if task.max_new_tokens else ""
        table.add_row(name, f"{len(task.train):,}", longest, f"{low:g} to {high:g}")
    console = Console(highlight=False)
    console.print(table)
    datasets = Table("dataset", "what it is", "verifier", "to train on", box=None)
    for name, dataset in CATALOG.items():
        datasets.add_row(name, dataset.about, dataset.verifier, "yes" if dataset.train else "")
    console.print("\nDatasets, from the Hub or from copies in $VANTAGE_DATA:")
    console.print(datasets)
    console.print(
        "\nOf your own: jsonl:PATH, parquet:PATH, hub:NAME, gym:NAME or FILE.py:CLASS. "
        "Look at one: vantage tasks sums --count 3",
        markup=False,
        soft_wrap=True,
    )


def show_task(spec: str, count: int, rewards: Sequence[str] = (), **data: Any) -> None:
    """Print `count` training problems (a benchmark's own), each with the reward of a right and of a wrong response.

    `data` has columns and templates as `get_task` takes them.
    """
    task = get_task(spec, **data)
    work = Workload.of(task, rewards) if rewards or task.reward_funcs else None
    evaluation_only = spec in CATALOG and CATALOG[spec].train is None
    problems = list(task.evaluation(count) if evaluation_only else islice(task.train, count))
    domains = is_file_spec(spec) and any(problem.domain != "default" for problem in problems)
    table = Table("problem", *(["domain"] if domains else []), "response", "reward", show_lines=True)
    for problem in problems:
        for i, (kind, response) in enumerate(responses(task, problem, work.rewards.ballot if work else None)):
            cells = (
                [_short(prompt_text(problem)), *([problem.domain] if domains else [])]
                if i == 0
                else [""] * (1 + domains)
            )
            table.add_row(*map(Text, cells), Text(f"{kind}\n{_short(response)}"), Text(score(work, problem, response)))
    console = Console(highlight=False)
    console.print(table)
    if work is None:
        console.print(
            "This task brings no reward function; try one with --reward FILE.py:FUNCTION, or a verifier such as math",
            soft_wrap=True,
        )


def responses(task: Task, problem: Problem, ballot: Ballot | None = None) -> list[tuple[str, str]]:
    """A correct response and a wrong one, each with what it is.

    Where the task knows no solution, its `answer` or `solution` column stands in, which a verifier may or may not take
    for a full response. Where the verifier says that there is no answer in it (`ballot`), it is marked as one. Without such a
    column there are an empty response and one of a single character, of which nobody knows whether they are right.
    """
    solution = task.solution(problem)
    kind = "correct"
    if solution is None:
        known = next((problem.columns[c] for c in ("solution", "answer") if problem.columns.get(c) is not None), None)
        kind, solution = ("the answer column", str(known)) if known is not None else ("empty", "")
        if known is not None and ballot is not None and ballot.answer_of(solution) is None:
            solution = f"\\boxed{{{solution}}}"
    if not solution:  # nothing is known to be right or wrong
        return [("empty", ""), ("some text", "?")]
    return [(kind, solution), ("wrong", wrong(task, problem, solution))]


def wrong(task: Task, problem: Problem, solution: str) -> str:
    """The solution altered; where it has no digit, a demonstration that slips at every step, if the task has slips."""
    has_digit = any(digit in solution for digit in "0123456789")
    slipped = None if has_digit else task.demonstration(problem, 1.0, random.Random(0))
    return altered(solution) if slipped is None or slipped == solution else slipped


def altered(response: str) -> str:
    """The response with its last digit raised by one (9 becomes 0); with `?` at its end where it has no digit."""
    for i in range(len(response) - 1, -1, -1):
        if response[i] in "0123456789":
            return response[:i] + str((int(response[i]) + 1) % 10) + response[i + 1 :]
    return response + "?"


def score(work: Workload | None, problem: Problem, response: str) -> str:
    """The total reward as text, from the reward functions themselves; why not, where they fail."""
    if work is None:
        return "-"
    columns = {name: [value] for name, value in problem.columns.items()}
    scored = work.rewards(prompts=[problem.prompt], completions=[response], completion_ids=[[]], columns=columns)
    total = scored.total[0]
    if total == total:
        return f"{total:g}"
    return "; ".join(scored.problems) or work.rewards.complaint(problem.columns) or "unscorable"


def prompt_text(problem: Problem) -> str:
    """The prompt, a conversation as `role: content` lines."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in problem.prompt)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
