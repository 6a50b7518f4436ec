"""The verifier of tool calls: what counts as a call, when two are the same, and text that means harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from vantage.errors import UserError
from vantage.verifiers.jsontext import JsonError, canonical, decode, decode_all, deeper_than
from vantage.verifiers.tools import Call, ToolCallVerifier, read_calls

ADD = '{"name": "add", "arguments": {"n": 3, "of": "egg"}}'
PAY = '{"name": "pay", "arguments": {"by": "card"}}'
EXPECTED = {"calls": [json.loads(ADD), json.loads(PAY)]}


def tag(*calls: str) -> str:
    return "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in calls)


@pytest.mark.parametrize(
    "text",
    [
        tag(ADD, PAY),
        "I add the eggs.\n" + tag(ADD) + "and pay:\n" + tag(PAY),
        f"<tool_call>[{ADD}, {PAY}]</tool_call>",
        f"```json\n[{ADD}, {PAY}]\n```",
        f"Here you are:\n```json\n{ADD}\n```\nand\n```\n{PAY}\n```\nDone.",
        f"[{ADD}, {PAY}]",
        f" {ADD}\n{PAY}\n",
        f"<think>```json {{</think>{ADD}{PAY}",
        f"Use ```x``` so:\nHere: ```json\n[{ADD}, {PAY}]```\nDone. ```y```",
        f"```\nno JSON\n```\n```json\n{ADD}\n{PAY}\n``` \n```python\nunclosed",
        f"```python\nprint({{}})\n```\n```JSON\n[{ADD},{PAY}]\n```",
        '[{"type": "function", "id": "1", "function": {"name": "add", "arguments": "{\\"of\\": \\"egg\\", \\"n\\": 3}"}},'
        '{"name": "pay", "parameters": {"by": "card"}}]',
    ],
)
def test_every_way_of_writing_the_same_calls_scores_1(text):
    assert ToolCallVerifier().score(text, EXPECTED) == 1.0
    assert ToolCallVerifier(ordered=True).score(text, EXPECTED) == 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0), ("I will not.", 0), (tag(ADD), 0.5), (tag(ADD, PAY, PAY), 2 / 3), (tag(ADD, ADD), 0.5), ("{}", 0), ("[]", 0),
        ("3", 0), ("null", 0), ('{"name": 3, "arguments": {}}', 0), ('{"name": "add", "arguments": [3]}', 0),
        (f"Sure: {ADD} {PAY}", 0), (f"{ADD}{PAY} done", 0), (f"<tool_call>{ADD}", 0), (tag(ADD) + "<tool_call>" + PAY, 0),
        (f"```json\n[{ADD}, {PAY}]", 0), (f"<think>{ADD}{PAY}", 0), (tag(ADD.replace("3", '"3"'), PAY), 0.5),
        (tag(ADD.replace("3", "true"), PAY), 0.5), (tag(ADD.replace("egg", "Egg"), PAY), 0.5),
        (tag(ADD.replace('"n": 3, ', ""), PAY), 0.5), (tag(ADD.replace("3", '3, "m": 1'), PAY), 0.5),
        (f"[{ADD}, 3]", 0), (f"[[{ADD}, {PAY}]]", 0), ('{"add": {"n": 3, "of": "egg"}}', 0),
    ],
)  # fmt: skip
def test_other_calls_score_0_or_the_share_that_is_right(text, share):
    assert ToolCallVerifier().score(text, EXPECTED) == 0.0
    assert ToolCallVerifier(share=True).score(text, EXPECTED) == pytest.approx(share)


def test_the_order_of_calls_matters_if_it_is_asked_for_and_that_of_arguments_never():
    swapped = tag(PAY, '{"arguments": {"of": "egg", "n": 3}, "name": "add"}')
    assert ToolCallVerifier().score(swapped, EXPECTED) == 1.0
    assert ToolCallVerifier(ordered=True).score(swapped, EXPECTED) == 0.0
    assert ToolCallVerifier(ordered=True, share=True).score(swapped, EXPECTED) == 0.5
    three = {"calls": [{"name": name} for name in "abc"]}
    assert ToolCallVerifier(ordered=True, share=True).score('[{"name":"c"},{"name":"a"},{"name":"b"}]', three) == 2 / 3


def test_numbers_are_equal_by_value_and_lists_in_their_order():
    one = {"calls": [{"name": "f", "arguments": {"x": 1, "y": [1, {"a": 2.5}]}}]}
    verifier = ToolCallVerifier()
    assert verifier.score('{"name":"f","arguments":{"y":[1.0,{"a":2.50}],"x":1e0}}', one) == 1.0
    assert verifier.score('{"name":"f","arguments":{"y":[{"a":2.5},1],"x":1}}', one) == 0.0
    assert verifier.score('{"name":"f","arguments":{"y":[1,{"a":2.5}],"x":true}}', one) == 0.0
    big = {"calls": [{"name": "f", "arguments": {"x": 10**30}}]}
    assert verifier.score('{"name":"f","arguments":{"x":1' + "0" * 30 + "}}", big) == 1.0
    assert verifier.score('{"name":"f","arguments":{"x":1' + "0" * 29 + "1}}", big) == 0.0


def test_fences_within_strings_are_text():
    expected = {"calls": [{"name": "write", "arguments": {"text": "```json\n{}\n```"}}]}
    call = json.dumps(expected["calls"][0])
    for text in (call, f"```json\n{call}\n```", f"```\n{call}```", tag(call)):
        assert ToolCallVerifier().score(text, expected) == 1.0


def test_no_call_can_be_what_is_expected():
    verifier = ToolCallVerifier(share=True)
    assert verifier.score("Nothing to do.", {"calls": []}) == 1.0
    assert verifier.score(tag(PAY), {"calls": "[]"}) == 0.0
    assert verifier.score("<tool_call>{", {"calls": []}) == 0.0


def test_the_short_form_is_a_call_only_where_it_is_allowed():
    expected = {"calls": '[{"name": "add", "arguments": {"n": 3}}]'}
    text = '{"add":{"n":3}}'
    assert ToolCallVerifier().score(text, expected) == 0.0
    assert ToolCallVerifier(short=True).score(text, expected) == 1.0
    assert ToolCallVerifier(short=True).score('{"name":"add","arguments":{"n":3}}', expected) == 1.0
    assert ToolCallVerifier(short=True).score('{"add":3}', expected) == 0.0
    assert read_calls(text, short=True) == [Call("add", {"n": 3})]


def test_expected_calls_may_be_json_and_the_column_may_have_another_name():
    verifier = ToolCallVerifier(calls_column="answers")
    assert verifier.score(tag(PAY), {"answers": f"[{PAY}]"}) == 1.0
    assert verifier.score(tag(PAY), {"answers": json.loads(PAY)}) == 1.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "neither the column 'calls' nor 'tools' is there"),
        ({"calls": "{"}, "column 'calls': .*it must be a list of"),
        ({"calls": 7}, "column 'calls': 7 is no call"),
        ({"calls": [{"arguments": {}}]}, "is no call with a name and arguments"),
        ({"calls": [{"name": "f", "arguments": {"x": {1, 2}}}]}, "is nothing that JSON can say"),
    ],
)
def test_columns_that_can_not_be_read_are_complained_of_and_not_scored(columns, message):
    found = ToolCallVerifier().complaint(columns)
    assert found is not None
    assert re.search(message, found)
    assert "\n" not in found
    assert ToolCallVerifier().score(tag(PAY), columns) is None
    assert ToolCallVerifier().complaint(EXPECTED) is None


HOSTILE = [
    "[" * 1_000_000, "{" * 199_000, '{"a":' * 30_000, "[" * 100_000 + "]" * 100_000, "<tool_call>" * 15_000, "```" * 60_000,
    "```json\n" * 20_000, '"' + '\\"' * 90_000, '{"' + '\\"' * 90_000, "[" + '"' * 190_000, ADD[:-1] + " " * 190_000,
    ADD.replace("3", "NaN"), ADD.replace("3", "Infinity"), ADD.replace("3", "-Infinity"), ADD.replace("3", "1e999"),
    ADD.replace("3", "9" * 100_000), ADD.replace("3", "3" * 5000),
    '{"name":"add","name":"add","arguments":{"n":3,"of":"egg"}}',
    '{"name":"add","arguments":{"n":3,"n":3,"of":"egg"}}', ADD.replace("3", "٣"), ADD.replace("3", "03"),
    ADD.replace("3", "3,"),
    ADD.replace('"', "'"), "\x00" * 1000, "\ud800", ADD.replace("3", "[" * 70 + "]" * 70), "[" + (ADD + ",") * 3000 + "]",
    " " * 1_000_000, (ADD + " ") * 20_000, "<tool_call></tool_call>" * 8000, "<think>" * 28_000, "</think>" * 24_000,
    '{"name":"add","arguments":"' + '{\\"a\\":' * 20_000 + '"}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_scores_0_at_once(text):
    start = time.perf_counter()
    assert ToolCallVerifier(ordered=True, share=True).score(text, {"calls": [json.loads(PAY)]}) == 0.0
    assert ToolCallVerifier().score(text, {"calls": [json.loads(ADD)]}) == 0.0
    assert time.perf_counter() - start < 1.5


def test_decoding_refuses_what_two_readers_could_read_in_two_ways():
    assert decode(' {"a": [1, 2.5, null, "x"]} ') == {"a": [1, 2.5, None, "x"]}
    assert decode_all('1 "a"\n[]') == [1, "a", []]
    assert decode_all("  ") == []
    for wrong in ("", "1 2", "NaN", '{"a":1,"a":1}', "1e400", "[1,]", "[" * 65 + "]" * 65, "\u00a01"):
        with pytest.raises(JsonError):
            decode(wrong)
    assert decode("[" * 64 + "]" * 64)


def test_depth_counts_brackets_outside_of_strings_only():
    assert not deeper_than('"[[[[" , "\\"[[[["', 0)
    assert deeper_than('"\\\\"[', 0)
    assert not deeper_than("[][][]", 1)
    assert deeper_than("[[]]", 1)


def test_equality_of_json():
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": (2.0,), "a": 1.0})
    assert canonical(True) != canonical(1)
    assert canonical("1") != canonical(1)
    assert canonical(None) != canonical("None")
    assert canonical({}) != canonical([])
    with pytest.raises(JsonError):
        canonical(float("nan"))


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "default": 1}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ROME = {"calls": [{"name": "weather", "arguments": {"city": "Rome"}}], "tools": [WEATHER]}


def test_a_schema_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    from vantage.verifiers import schemas

    schemas._read.cache_clear()
    for ask in (ToolCallVerifier().complaint, lambda columns: ToolCallVerifier().score("", columns)):
        with pytest.raises(
            UserError, match=r"column 'tools' .* jsonschema is missing: pip install 'vantage-rl\[tools\]'$"
        ):
            ask(ROME)


def test_calls_are_checked_against_schemas():
    verifier, alone = ToolCallVerifier(), {"tools": [WEATHER]}
    assert verifier.complaint(ROME) is None

    def call(arguments: str) -> str:
        return tag(f'{{"name": "weather", "arguments": {arguments}}}')

    assert verifier.score(call('{"city": "Rome"}'), ROME) == 1.0
    assert verifier.score(call('{"city": "Rome", "days": 1}'), ROME) == 1.0
    assert verifier.score(call('{"city": "Rome", "days": 2}'), ROME) == 0.0
    assert verifier.score(call('{"city": "Oslo", "days": 2}'), alone) == 1.0
    assert verifier.score(call('{"city": "Oslo", "days": 0}'), alone) == 0.0
    assert verifier.score(call('{"days": 2}'), alone) == 0.0
    assert verifier.score(call('{"city": "Oslo", "when": 2}'), alone) == 0.0
    assert verifier.score(tag('{"name": "wether", "arguments": {"city": "Oslo"}}'), alone) == 0.0
    assert verifier.score("", alone) == 0.0
    half = call('{"city": "Oslo"}') + call("{}")
    assert ToolCallVerifier(share=True).score(half, alone) == 0.5


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": WEATHER}],
        {"weather": WEATHER["parameters"]},
        json.dumps([WEATHER]),
        WEATHER,
        {"type": "function", "function": WEATHER},
        [{"name": "other"}, WEATHER],
    ],
)
def test_tools_are_described_in_several_ways(tools):
    columns = {**ROME, "tools": tools}
    assert ToolCallVerifier().complaint(columns) is None
    assert ToolCallVerifier().score(tag(json.dumps(ROME["calls"][0])), columns) == 1.0
    assert ToolCallVerifier().score(tag('{"name": "weather", "arguments": {}}'), {"tools": tools}) == 0.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": 3}, "describes no tools"),
        ({"tools": "["}, "describes no tools"),
        ({"tools": [{"parameters": {}}]}, "describes no tools"),
        ({"tools": {"f": {"type": "objekt"}}}, "the schema of 'f' is no JSON Schema"),
        ({**ROME, "calls": [{"name": "wether"}]}, "expects a call of 'wether', which 'tools' lacks"),
        ({**ROME, "calls": [{"name": "weather", "arguments": {"city": 3}}]}, "arguments of 'weather' that its schema"),
    ],
)
def test_wrong_descriptions_are_complained_of(columns, message):
    assert message in (ToolCallVerifier().complaint(columns) or "")


def test_a_reference_to_elsewhere_is_not_fetched_and_allows_nothing():
    columns = {"tools": {"f": {"properties": {"x": {"$ref": "http://127.0.0.1:9/schema.json"}}}}}
    assert ToolCallVerifier().score('{"name": "f", "arguments": {"x": 1}}', columns) == 0.0
    endless = {"tools": {"f": {"$ref": "#"}}}
    assert ToolCallVerifier().score('{"name": "f", "arguments": {"x": 1}}', endless) == 0.0


def test_importing_the_verifiers_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'numpy', 'asyncio', 'jsonschema', 'datasets'}"
    code = f"import sys, vantage.verifiers.tools, vantage.verifiers.instructions; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
