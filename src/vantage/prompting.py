"""From a problem's prompt to token ids: as it stands, or through the tokenizer's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.tasks.base import Prompt


@dataclass(frozen=True)
class Chat:
    """How prompts pass through a chat template."""

    template: Literal["auto", "never"] = "auto"
    """`auto`: plain text becomes a user turn where the tokenizer has a template; `never`: it stays as it is."""
    thinking: bool | None = None
    """What the template's `enable_thinking` is set to (Qwen3 and others have it); None leaves it to the template."""

    def __str__(self) -> str:
        """What a checkpoint or a cache is tied to."""
        return self.template if self.thinking is None else f"{self.template}, thinking {self.thinking}"


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: Chat = Chat()) -> list[int]:  # it is frozen
    """Token ids of a prompt, as it stands or as a conversation (see `Chat`).

    Raises `UserError` for a conversation without a chat template, and for a prompt without tokens.
    """
    templated = bool(getattr(tokenizer, "chat_template", None))
    if not isinstance(prompt, str) and not templated:
        raise UserError("the prompts are conversations, but the model's tokenizer has no chat template")
    if isinstance(prompt, str) and not (templated and chat.template == "auto"):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = rendered(tokenizer, messages, chat.thinking)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise UserError(f"a prompt has no tokens: {prompt!r}")
    return ids


def rendered(tokenizer: Any, messages: Any, thinking: bool | None) -> str:
    """A conversation as text, with the generation prompt behind it."""
    switch = {} if thinking is None else {"enable_thinking": thinking}
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **switch)
    return text


def check_thinking(tokenizer: Any, model: str) -> None:
    """Raise `UserError` where a template has no such switch; asked only if one was given."""
    turn = [{"role": "user", "content": "1+1="}]
    templated = bool(getattr(tokenizer, "chat_template", None))
    if not templated or rendered(tokenizer, turn, True) == rendered(tokenizer, turn, False):
        what = "the chat template of" if templated else "no chat template comes with"
        raise UserError(
            f"--enable-thinking: {what} {model}{' has no such switch' if templated else ''}; leave the flag out"
        )


def decode_response(tokenizer: Any, ids: list[int]) -> str:
    """The text that verifiers see: special tokens left out, nothing tidied."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
