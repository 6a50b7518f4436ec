"""Prompts as token ids: plain, through a chat template, with its switch for thinking."""

from __future__ import annotations

import pytest

from vantage import TrainConfig, UserError, tiny
from vantage.cli import main
from vantage.config import EvalConfig
from vantage.prompting import Chat, check_thinking, encode_prompt

SWITCH = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}00{% endif %}>"
)
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"


def tokenizer(template: str | None):
    found = tiny.tokenizer()
    found.chat_template = template
    return found


def text(template, chat) -> str:
    made = tokenizer(template)
    return made.decode(encode_prompt(made, "1+2=", chat))


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (Chat(), "1+2=>"),
        (Chat(thinking=True), "1+2=>"),
        (Chat(thinking=False), "1+2=00>"),
        (Chat("never"), "1+2="),
        (Chat("never", False), "1+2="),
    ],
)
def test_the_switch_reaches_the_template(chat, expected):
    assert text(SWITCH, chat) == expected


def test_without_a_template_plain_text_stays_and_a_conversation_is_refused():
    assert text(None, Chat()) == "1+2="
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(tokenizer(None), [{"role": "user", "content": "1"}])


@pytest.mark.parametrize("template", [PLAIN, None])
def test_a_template_without_the_switch_is_named(template):
    with pytest.raises(UserError, match="--enable-thinking"):
        check_thinking(tokenizer(template), "some/model")
    check_thinking(tokenizer(SWITCH), "some/model")


def test_the_flag_is_three_valued_and_part_of_what_checkpoints_are_tied_to():
    assert TrainConfig().chat == Chat() == EvalConfig("tiny").chat
    assert TrainConfig(enable_thinking=False, chat_template="never").chat == Chat("never", False)
    assert len({str(Chat()), str(Chat(thinking=True)), str(Chat(thinking=False)), str(Chat("never"))}) == 4


def test_a_run_with_a_switch_that_is_not_there_stops_before_it_starts(tmp_path, capsys):
    assert main(["train", "--enable-thinking", "true", "--out", str(tmp_path / "run"), "--steps", "1"]) == 2
    assert "--enable-thinking" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
