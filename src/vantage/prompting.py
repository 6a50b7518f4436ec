"""From a problem's prompt to token ids: as it stands, or through the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.tasks.base import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt, chat_template: str = "auto") -> list[int]:
    """Token ids of a prompt; plain text becomes a user turn where the tokenizer has a template and it is `auto`.

    Raises `UserError` for a conversation without a chat template, and for a prompt without tokens.
    """
    templated = bool(getattr(tokenizer, "chat_template", None))
    if not isinstance(prompt, str) and not templated:
        raise UserError("the prompts are conversations, but the model's tokenizer has no chat template")
    if isinstance(prompt, str) and not (templated and chat_template == "auto"):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise UserError(f"a prompt has no tokens: {prompt!r}")
    return ids


def decode_response(tokenizer: Any, ids: list[int]) -> str:
    """The text that verifiers see: special tokens left out, nothing tidied."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
