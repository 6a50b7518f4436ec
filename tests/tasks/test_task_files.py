"""Tasks from the user's own data: what becomes of rows, and that every mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from vantage.errors import UserError
from vantage.tasks import Task, from_dataset, get_task

ROWS = [{"prompt": f"q{i}", "answer": str(i), "level": i % 3} for i in range(25)]
CHAT = [{"prompt": [{"role": "user", "content": f"q{i}"}], "answer": str(i)} for i in range(25)]


def jsonl(folder: Path, rows: list[Any], name: str = "data.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def parquet(folder: Path, rows: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet", row_group_size=10)
    return str(folder / "data.parquet")


def failure(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Custom:
    """Random access and a length, nothing else."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


MAKERS: dict[str, Callable[[Path, list[Any]], Task]] = {
    "jsonl": lambda folder, rows: get_task("jsonl:" + jsonl(folder, rows)),
    "bare path": lambda folder, rows: get_task(jsonl(folder, rows)),
    "json lines in .json": lambda folder, rows: get_task(jsonl(folder, rows, "data.json")),
    "json array": lambda folder, rows: get_task(array(folder, rows)),
    "parquet": lambda folder, rows: get_task("parquet:" + parquet(folder, rows)),
    "bare parquet": lambda folder, rows: get_task(parquet(folder, rows)),
    "list": lambda folder, rows: from_dataset(rows),
    "Dataset": lambda folder, rows: from_dataset(datasets.Dataset.from_list(rows)),
    "shuffled Dataset": lambda folder, rows: from_dataset(
        datasets.Dataset.from_list(rows[::-1]).select(range(len(rows) - 1, -1, -1))
    ),
    "custom sequence": lambda folder, rows: from_dataset(Custom(rows)),
}


def array(folder: Path, rows: list[Any]) -> str:
    (folder / "array.json").write_text("\n" + json.dumps(rows, indent=1))
    return str(folder / "array.json")


@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_every_source_gives_the_same_problems(
    tmp_path: Path, make: Callable[[Path, list[Any]], Task], rows: list[dict[str, Any]]
) -> None:
    task = make(tmp_path, rows)
    held_out = task.evaluation(1000)
    problems = [*task.train, *held_out]
    assert (len(task.train), len(held_out)) == (23, 2)
    assert [problem.prompt for problem in problems] == [row["prompt"] for row in rows]
    assert [problem.columns for problem in problems] == [
        {name: value for name, value in row.items() if name != "prompt"} for row in rows
    ]
    assert {problem.domain for problem in problems} == {"default"}
    assert task.reward_funcs == ()
    assert task.solution(problems[0]) is None


def test_hub_names_take_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        if split == "tests":
            raise ValueError('Unknown split "tests".\nShould be one of ["train"].')
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(get_task("hub:owner/name").train) == 23
    get_task("hub:owner/name:main@test")
    assert calls == [("owner/name", None, "train"), ("owner/name", "main", "test")]
    assert failure(lambda: get_task("hub:owner/name@tests")) == (
        "--task hub:owner/name@tests: the dataset does not load: "
        'ValueError: Unknown split "tests". Should be one of ["train"].'
    )


def test_columns_that_trl_drops_do_not_reach_rewards() -> None:
    rows = [{"question": "q", "prompt": "old", "completion": "c", "completion_ids": [1], "answer": "a"}] * 10
    assert from_dataset(rows, prompt_column="question").train[0].columns == {"answer": "a"}


def test_domains_come_from_their_column_and_stay_columns() -> None:
    def domains(row: dict[str, Any], **options: Any) -> str:
        problem = from_dataset([{"prompt": "q", **row}], **options).train[0]
        assert dict(problem.columns) == row
        return problem.domain

    assert domains({"domain": "maths"}) == "maths"
    assert domains({"data_source": "openai/gsm8k"}) == "openai/gsm8k"
    assert domains({"domain": "maths", "kind": 3}, domain_column="kind") == "3"
    assert domains({"domain": None}) == "default"


def test_a_verl_row_arrives_whole(tmp_path: Path) -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"index": 0, "split": "train"},
    }
    problem = get_task(parquet(tmp_path, [row])).train[0]
    assert problem.prompt == row["prompt"]
    assert problem.domain == "openai/gsm8k"
    assert problem.columns["reward_model"] == {"style": "rule", "ground_truth": "72"}


def test_messages_lose_the_empty_keys_that_arrow_adds() -> None:
    rows = [{"prompt": [{"role": "user", "content": "q", "name": None}]}]
    assert from_dataset(rows).train[0].prompt == [{"role": "user", "content": "q"}]


def test_the_last_tenth_is_held_out_up_to_a_thousand_rows() -> None:
    task = from_dataset([{"prompt": str(i)} for i in range(20_000)])
    assert len(task.train) == 19_000
    assert task.train[-1].prompt == "18999"
    assert [problem.prompt for problem in task.evaluation(4)] == ["19000", "19250", "19500", "19750"]
    assert len(task.evaluation(5000)) == 1000


def test_with_evaluation_data_every_row_is_trained_on(tmp_path: Path) -> None:
    task = get_task(jsonl(tmp_path, ROWS), eval_spec=jsonl(tmp_path, ROWS[:3], "eval.jsonl"))
    assert len(task.train) == 25
    assert [problem.prompt for problem in task.evaluation(10)] == ["q0", "q1", "q2"]
    assert from_dataset(ROWS, evaluation=ROWS[:1]).evaluation(5)[0].prompt == "q0"


def test_too_few_rows_to_hold_out_can_be_trained_on_but_not_evaluated() -> None:
    task = from_dataset(ROWS[:9])
    assert len(task.train) == 9
    assert "9 rows are too few to hold a tenth of them out" in failure(lambda: task.evaluation(10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": "a"}\n\n{"prompt": \n', "line 3 is not valid JSON (JSONDecodeError"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2 is not valid JSON (UnicodeDecodeError"),
        ('{"prompt": "a"}\n["b"]\n', 'line 2 is a JSON list, it must be an object such as {"prompt": ...}'),
        ("[" * 100_000, "line 1 is not valid JSON (RecursionError"),
        ("\n \n", "it has no rows"),
        ('{"prompt": "a"}\n\n{"prompt": 3}\n', "line 3, column 'prompt': a prompt is text or a list of messages"),
        ('{"prompt": "a"}\n{"prompt": ""}\n', "line 2, column 'prompt': the prompt is empty"),
        ('{"prompt": "a", "x": 1}\n{"prompt": "b"}\n', "line 2 lacks the column 'x' compared with line 1; reward"),
        ('{"prompt": "a"}\n{"prompt": "b", "x": 1}\n', "line 2 adds the column 'x' compared with line 1; reward"),
        ('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n', "line 2 has a prompt of another kind"),
        ('{"prompt": []}\n', "line 1, column 'prompt': the prompt has no messages"),
        ('{"prompt": ["a"]}\n', "a message is {\"role\": ..., \"content\": ...}, this is a str"),
        ('{"prompt": [{"role": "user"}]}\n', "a message's 'content' must be text, here it is NoneType"),
        ('{"prompts": "a", "b": 1}\n', "no column 'prompt' (--prompt-column), it has: prompts, b, did you mean 'prompts'?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_jsonl_file_are_named_with_their_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = failure(lambda: get_task(str(file)))
    assert message.startswith(f"--task {file}: ")
    assert expected in message


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}')
    assert [problem.prompt for problem in get_task(str(file)).train] == ["a", "b"]


def test_files_that_are_missing_or_corrupt_are_named(tmp_path: Path) -> None:
    jsonl(tmp_path, ROWS)
    assert "there is no file" in failure(lambda: get_task(f"{tmp_path}/date.jsonl"))
    assert "did you mean 'data.jsonl'?" in failure(lambda: get_task(f"jsonl:{tmp_path}/date.jsonl"))
    assert "there is no file" in failure(lambda: get_task(f"jsonl:{tmp_path}"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    assert "no readable Parquet file (Arrow" in failure(lambda: get_task(f"{tmp_path}/bad.parquet"))
    (tmp_path / "bad.json").write_text('[{"prompt": "a"},')
    assert "it is not valid JSON" in failure(lambda: get_task(f"{tmp_path}/bad.json"))
    assert failure(lambda: get_task("jsonl:")) == "--task jsonl:: what to read is missing after the colon"
    spec = f"{tmp_path}/data.jsonl"
    assert failure(lambda: get_task(spec, eval_spec="sums")).startswith("eval_spec sums: this names no data")


def test_mistakes_in_tables_are_named(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "a"}, {"prompt": None}]
    for make in (MAKERS["parquet"], MAKERS["Dataset"], MAKERS["custom sequence"]):
        assert "row 1, column 'prompt': a prompt is text" in failure(lambda make=make: make(tmp_path, rows))
        assert "it has no column 'prompt'" in failure(lambda make=make: make(tmp_path, [{"question": "a"}]))
    assert "row 1 lacks the column 'prompt'" in failure(lambda: from_dataset(Custom([{"prompt": "a"}, {"x": 1}])))
    assert "row 1 is a str, it must be a mapping" in failure(lambda: from_dataset([{"prompt": "a"}, "b"]))
    assert "it has no column 'kind' (--domain-column)" in failure(lambda: from_dataset(ROWS, domain_column="kind"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "train_data: it has no rows"),
        (["q"], "train_data: row 0 is a str, it must be a mapping"),
        ("data.jsonl", "this is a str, it must be a datasets.Dataset or a sequence"),
        ({"prompt": ["q"]}, "this is a dict, it must be"),
        (iter(ROWS), "this is a list_iterator, it must be"),
        (datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)), 'choose one of its splits, as in data["test"]'),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "this is a stream"),
    ],
)
def test_what_is_no_dataset_is_refused(data: Any, expected: str) -> None:
    assert expected in failure(lambda: from_dataset(data))


def test_pandas_frames_are_refused_with_advice_that_works() -> None:
    pandas = pytest.importorskip("pandas")
    import numpy as np

    frame = pandas.DataFrame({"prompt": [np.array(row["prompt"]) for row in CHAT]})
    assert 'pass data.to_dict("records")' in failure(lambda: from_dataset(frame))
    assert from_dataset(frame.to_dict("records")).train[1].prompt == CHAT[1]["prompt"]


def test_a_dataset_formatted_as_tensors_gives_python_values() -> None:
    data = datasets.Dataset.from_list([{"prompt": "q", "level": 1}]).with_format("numpy")
    assert type(from_dataset(data).train[0].columns["level"]) is int


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "q"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"index": 0, "split": "train", "answer": "so #### 72"},
}


def test_verl_rows_have_their_ground_truth_as_answer(tmp_path: Path) -> None:
    columns = get_task(parquet(tmp_path, [VERL])).train[0].columns
    assert columns["answer"] == "72"
    assert columns["reward_model"] == VERL["reward_model"]
    assert from_dataset([{**VERL, "answer": "own"}]).train[0].columns["answer"] == "own"


def test_the_answer_column_may_lie_inside_another_one(tmp_path: Path) -> None:
    task = get_task(parquet(tmp_path, [VERL]), answer_column="extra_info.answer")
    assert task.train[0].columns["answer"] == "so #### 72"
    assert from_dataset(ROWS, answer_column="level").train[4].columns["answer"] == 1
    assert from_dataset([{"prompt": "q", "a.b": "dotted"}], answer_column="a.b").train[0].columns["answer"] == "dotted"
    assert "it has no column 'info' (--answer-column)" in failure(lambda: from_dataset([VERL], answer_column="info.a"))
    message = failure(lambda: from_dataset([VERL], answer_column="extra_info.nothing"))
    assert message == "train_data: row 0: there is no answer at 'extra_info.nothing' (--answer-column)"
    message = failure(lambda: from_dataset([VERL], answer_column="extra_info.anser"))
    assert message.endswith("no answer at 'extra_info.anser' (--answer-column), did you mean 'answer'?")


def test_templates_and_system_prompts_go_around_text(tmp_path: Path) -> None:
    rows = [{"prompt": "1+{prompt}?", "unit": "cm"}]
    task = from_dataset(rows, prompt_template="{prompt} In {unit}, as \\boxed{}; {x}.")
    assert task.train[0].prompt == "1+{prompt}? In cm, as \\boxed{}; {x}."
    task = from_dataset(rows, system_prompt="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert task.train[0].prompt == [system, {"role": "user", "content": "1+{prompt}?"}]
    assert from_dataset(CHAT, system_prompt="Be brief.").train[1].prompt == [system, *CHAT[1]["prompt"]]
    own = [{"prompt": [{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}]}]
    assert from_dataset(own, system_prompt="Be brief.").train[0].prompt == own[0]["prompt"]
    assert "row 0: the prompt is a conversation" in failure(lambda: from_dataset(CHAT, prompt_template="{prompt}!"))
    assert "must have {prompt} where" in failure(lambda: get_task(jsonl(tmp_path, rows), prompt_template="Q: "))


def test_responses_to_data_vote_with_their_marked_answer() -> None:
    task = from_dataset(ROWS)
    assert task.answer_of("so \\boxed{1,000.}") == "1000"
    assert task.answer_of("so 1000") is None


def test_nothing_is_held_out_where_evaluation_has_other_data() -> None:
    task = from_dataset(ROWS, hold_out=False)
    assert len(task.train) == 25
    assert "no rows were held out for evaluation, all are trained on" in failure(lambda: task.evaluation(3))
