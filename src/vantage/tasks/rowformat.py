"""How does a row of data become a prompt and the columns for its verification? Which column is what, and what is added."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.rewards.calls import DROPPED_COLUMNS
from vantage.tasks.base import Message, Prompt

DOMAIN_COLUMNS = ("domain", "data_source")  # the second is verl's
_FIELD = re.compile(r"\{(\w+)\}")


class RowError(ValueError):
    """A row that no problem can be made of; the message says why."""


@dataclass(frozen=True)
class RowFormat:
    """Which column of a row is what.

    Attributes:
        prompt_column: The prompts: text, or conversations as lists of messages.
        answer_column: What reward functions get as `answer`; `COLUMN.KEY` reaches into a column of mappings. Default: the
            column `answer`, and verl's `reward_model.ground_truth` where there is none.
        domain_column: What becomes `Problem.domain`. Default: `domain` or verl's `data_source` if there is one.
        prompt_template: Text around a plain-text prompt; `{prompt}` and other names of columns in braces are filled in.
        system_prompt: Text of a system message before every prompt; a conversation that begins with one keeps its own.

    Raises:
        UserError: the template has no `{prompt}`.
    """

    prompt_column: str = "prompt"
    answer_column: str | None = None
    domain_column: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise UserError(
                f"--prompt-template is {self.prompt_template!r}, it must have {{prompt}} where the prompt belongs"
            )

    def named(self) -> list[tuple[str, str]]:
        """Flags and the columns that they name, for a check that these are there."""
        named = (
            ("--prompt-column", self.prompt_column),
            ("--answer-column", self.answer_column and self.answer_column.partition(".")[0]),
            ("--domain-column", self.domain_column),
        )
        return [(flag, column) for flag, column in named if column is not None]

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row, template and system message included; raises `RowError`."""
        prompt = as_prompt(row[self.prompt_column])
        if self.prompt_template is not None:
            if not isinstance(prompt, str):
                raise RowError("the prompt is a conversation, --prompt-template is for plain text")
            prompt = fill(self.prompt_template, {**row, "prompt": prompt})
        if self.system_prompt is None:
            return prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What reward functions get; raises `RowError` if the answer is not where it should be."""
        left_out = (self.prompt_column, *DROPPED_COLUMNS)
        found = {str(name): value for name, value in row.items() if name not in left_out}
        if self.answer_column is not None:
            found["answer"] = at_path(row, self.answer_column)
        elif (
            "answer" not in found
            and isinstance(truth := found.get("reward_model"), Mapping)
            and "ground_truth" in truth
        ):
            found["answer"] = truth["ground_truth"]
        return found

    def domain(self, row: Mapping[str, Any]) -> str:
        """The domain of a row."""
        names = (self.domain_column,) if self.domain_column else DOMAIN_COLUMNS
        return next((str(row[name]) for name in names if row.get(name) is not None), "default")


def at_path(row: Mapping[str, Any], path: str) -> Any:
    """`row["a"]["b"]` for `a.b`; a column of that very name goes before. Raises `RowError` where there is nothing."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or value.get(key) is None:
            near = did_you_mean(key, list(map(str, value))) if isinstance(value, Mapping) else ""
            raise RowError(f"there is no answer at {path!r} (--answer-column){near}")
        value = value[key]
    return value


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Put fields into `{NAME}`s; names that there are not, and braces around anything else, stay. Lists become lines."""

    def text(found: re.Match[str]) -> str:
        if found[1] not in fields:
            return found[0]
        value = fields[found[1]]
        return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return _FIELD.sub(text, template)


def as_prompt(value: Any) -> Prompt:
    """The value as a prompt; raises `RowError`. Arrow fills keys that a message lacks with None; these go."""
    if isinstance(value, str):
        if not value:
            raise RowError("the prompt is empty")
        return str(value)
    if hasattr(value, "tolist"):  # pandas gives out lists as numpy arrays
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise RowError(f"a prompt is text or a list of messages, this is a {type(value).__name__}")
    if not value:
        raise RowError("the prompt has no messages")
    return _messages(value)


def _messages(value: Sequence[Any]) -> list[Message]:
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping):
            raise RowError(f'a message is {{"role": ..., "content": ...}}, this is a {type(message).__name__}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise RowError(f"a message's {key!r} must be text, here it is {type(message.get(key)).__name__}")
        messages.append({key: content for key, content in message.items() if content is not None})
    return messages
