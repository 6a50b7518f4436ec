"""Built-in datasets, through local copies that have the columns of the real ones; reasoning-gym through a stand-in."""

from __future__ import annotations

import base64
import json
import math
import pickle
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from vantage.errors import UserError
from vantage.rewards import verifiers
from vantage.rewards.functions import RewardSet
from vantage.rewards.loading import from_spec
from vantage.tasks import Task, get_task, task_specs
from vantage.tasks.catalog import CATALOG, trainable
from vantage.taskview import list_tasks, show_task
from vantage.verifiers.workers import WorkerLimits


class Exact:
    """A stand-in for any verifier: 1 if the response ends in the answer; it records the rows that it sees."""

    name, version = "exact", "3"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def score(self, text: str, columns: dict[str, Any]) -> float | None:
        self.rows.append(dict(columns))
        return None if "answer" not in columns else float(text.endswith(columns["answer"]))


MATH_ROW = {
    "problem": "What is $1+1$?",
    "solution": r"It is \boxed{2}.",
    "answer": "2",
    "subject": "Algebra",
    "level": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "Tom has 1,000 and 23.", "answer": "1000+23=<<1000+23=1023>>1023\n#### 1,023"},
    "math": {"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": r"So \boxed{\frac{1}{2}}."},
    "dapo-math": {
        "prompt": "What is 6*7?", "solution": "42", "data_source": "math_dapo", "source_prompt": [], "ability": "MATH",
        "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "a"},
    },
    "math500": {**MATH_ROW, "unique_id": "test/algebra/1.json"},
    "aime24": {"id": 60, "problem": "Find it.", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
    "aime25": {"problem": "Find it.", "answer": "70", "id": "0"},
    "aime26": {"problem_idx": 1, "answer": 277, "problem": "Find it."},
    "amc23": {"id": 0, "question": "Where?", "answer": "27.0", "url": "u"},
    "hmmt25": {"problem_idx": 1, "answer": "103", "problem": "Sum?", "problem_type": ["Number Theory"]},
    "brumo25": {"problem_idx": 1, "answer": "6", "problem": "Sum?", "problem_type": ["Algebra"]},
    "olympiadbench": {"id": 1606, "question": "Solve.", "final_answer": ["$2$"], "is_multiple_answer": False},
    "minerva": {"question": "How far?", "answer": "1.6"},
    "ifeval": {
        "key": 1000, "prompt": "Write no comma.", "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    },
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n", "entry_point": "f",
    },
    "mbpp": {
        "task_id": 11, "text": "Write a function that adds.", "code": "def f(a, b):\n  return a + b",
        "test_list": ["assert f(1, 2) == 3", "assert f(0, 0) == 0"], "test_setup_code": "", "challenge_test_list": [],
    },
    "livecodebench": {
        "question_title": "t", "question_content": "Print it.", "platform": "atcoder", "question_id": "a",
        "contest_id": "c", "contest_date": "2024", "starter_code": "", "difficulty": "easy", "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}]),
        "private_test_cases": base64.b64encode(
            zlib.compress(pickle.dumps(json.dumps([{"input": "2\n", "output": "2\n", "testtype": "stdin"}])))
        ).decode(),
    },
}  # fmt: skip
ANSWERS = {
    "gsm8k": "1023", "math": r"\frac{1}{2}", "dapo-math": "42", "math500": "2", "aime24": "204", "aime25": "70",
    "aime26": "277", "amc23": "27.0", "hmmt25": "103", "brumo25": "6", "olympiadbench": "$2$", "minerva": "1.6",
}  # fmt: skip


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as VANTAGE_DATA, an empty cache, no network, and stand-ins for the verifiers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VANTAGE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(verifiers, "_MAKERS", dict.fromkeys(("math", "code", "instructions"), Exact))
    (tmp_path / "data").mkdir()
    datasets.disable_progress_bars()
    return tmp_path / "data"


def put(folder: Path, split: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def failure(make: Any) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_dataset_has_a_row_here() -> None:
    assert list(ROWS) == list(CATALOG)
    assert trainable() == ["gsm8k", "math", "dapo-math", "mbpp"]


@pytest.mark.parametrize("name", CATALOG)
def test_a_name_is_all_that_a_dataset_needs(copies: Path, name: str) -> None:
    dataset = CATALOG[name]
    for split in {dataset.train, dataset.evaluation} - {None}:
        put(copies / name, str(split), [ROWS[name]] * 12)
    task = get_task(name)
    problem = task.evaluation(1)[0]
    assert isinstance(problem.prompt, str)
    assert ROWS[name][dataset.prompt] in problem.prompt
    if dataset.verifier == "math":
        assert problem.prompt.endswith("put your final answer within \\boxed{}.")
        assert problem.columns["answer"] == ANSWERS[name]
        assert task.answer_of(r"thus \boxed{ 1,023.0 }") == "1023"
    else:
        assert task.answer_of(r"thus \boxed{1}") is None
    assert "{" not in problem.prompt.replace("\\boxed{}", "")
    assert problem.domain == {"math": "math", "code": "code"}.get(dataset.verifier, "other")
    assert task.version == "1 exact-3"
    assert task.max_new_tokens == dataset.max_new_tokens
    assert (len(task.train) > 0) if dataset.train else "is for evaluation only" in failure(lambda: len(task.train))


def test_rows_of_code_reach_the_verifier_with_their_tests(copies: Path) -> None:
    for name in ("humaneval", "mbpp", "livecodebench"):
        put(copies / name, "test", [ROWS[name]])
    columns = get_task("livecodebench").evaluation(1)[0].columns
    assert [test["input"] for test in columns["tests"]] == ["1\n", "2\n"]
    assert get_task("humaneval").evaluation(1)[0].columns["entry_point"] == "f"
    problem = get_task("mbpp").evaluation(1)[0]
    assert problem.columns["test_list"] == ROWS["mbpp"]["test_list"]
    assert "assert f(1, 2) == 3\nassert f(0, 0) == 0" in problem.prompt


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it ran')",))


def test_pickled_tests_can_not_run_code(copies: Path) -> None:
    bad = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    put(copies / "livecodebench", "test", [{**ROWS["livecodebench"], "private_test_cases": bad}])
    message = failure(lambda: get_task("livecodebench").evaluation(1)[0])
    assert message == "--task livecodebench: row 0 can not be used: it names builtins.exec"
    bad = base64.b64encode(zlib.compress(pickle.dumps(["[]"]))).decode()
    put(copies / "livecodebench", "test", [{**ROWS["livecodebench"], "private_test_cases": bad}])
    assert "row 0 can not be used: a list where text" in failure(lambda: get_task("livecodebench").evaluation(1)[0])


def test_nothing_is_read_before_a_problem_is_asked_for(copies: Path) -> None:
    task = get_task("gsm8k")
    put(copies / "gsm8k", "train", [ROWS["gsm8k"]] * 3)
    assert len(task.train) == 3


def test_splits_are_the_datasets_own(copies: Path) -> None:
    put(copies / "gsm8k", "train", [{**ROWS["gsm8k"], "question": f"train {i}"} for i in range(20)])
    put(copies / "gsm8k", "test", [{**ROWS["gsm8k"], "question": f"test {i}"} for i in range(10)])
    task = get_task("gsm8k")
    assert len(task.train) == 20
    assert [str(p.prompt).split("\n")[0] for p in task.evaluation(5)] == [f"test {i}" for i in (0, 2, 4, 6, 8)]
    assert [str(p.prompt).split("\n")[0] for p in task.train[3:5]] == ["train 3", "train 4"]


def test_without_a_split_to_evaluate_on_a_tenth_is_held_out(copies: Path) -> None:
    put(copies / "dapo-math", "train", [{**ROWS["dapo-math"], "prompt": f"q{i}"} for i in range(20)])
    task = get_task("dapo-math")
    trained = {str(p.prompt) for p in task.train}
    held_out = {str(p.prompt) for p in task.evaluation(100)}
    assert (len(trained), len(held_out), trained & held_out) == (18, 2, set())
    whole = get_task("dapo-math", hold_out=False)
    assert len(whole.train) == 20
    assert "no rows were held out" in failure(lambda: whole.evaluation(1))
    put(copies / "dapo-math", "train", [ROWS["dapo-math"]] * 3)
    assert "3 rows are too few to hold some out" in failure(lambda: get_task("dapo-math").evaluation(1))


@pytest.mark.parametrize("form", ["alias", "hub id", "last part", "parquet", "saved to disk", "configuration folder"])
def test_copies_are_found_in_every_form(copies: Path, form: str) -> None:
    rows = [{**ROWS["gsm8k"], "question": form}]
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)})
    if form == "hub id":
        put(copies / "openai" / "gsm8k", "train", rows)
    elif form == "last part":
        put(copies / "gsm8k", "train", rows)
    elif form == "parquet":
        (copies / "gsm8k").mkdir()
        data["train"].to_parquet(copies / "gsm8k" / "train-00000-of-00001.parquet")
    elif form == "saved to disk":
        data.save_to_disk(copies / "gsm8k")
    elif form == "configuration folder":
        put(copies / "gsm8k" / "main", "train", rows)
    else:
        put(copies / "gsm8k", "train", rows)
    assert str(get_task("gsm8k").train[0].prompt).startswith(form)


def test_a_clone_of_the_repository_keeps_its_configurations(copies: Path) -> None:
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.jsonl\n"
        for name in ("main", "socratic")
    )
    for name in ("main", "socratic"):
        put(copies / "openai" / "gsm8k" / name, "train", [{**ROWS["gsm8k"], "question": name}])
    (copies / "openai" / "gsm8k" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert str(get_task("gsm8k").train[0].prompt).startswith("main")


def test_hub_specs_find_copies_too(copies: Path) -> None:
    put(copies / "owner" / "mine", "train", [{"prompt": f"q{i}", "answer": "a"} for i in range(10)])
    assert get_task("hub:owner/mine").train[0].prompt == "q0"


def test_without_network_and_copy_the_message_says_where_to_put_one(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert failure(lambda: get_task("gsm8k").train[0]) == (
        "--task gsm8k: openai/gsm8k is not in the cache and the Hub can not be reached; get it where there is a "
        "network, or put its files, one for each split such as train.jsonl or train.parquet, into $VANTAGE_DATA/gsm8k"
    )
    assert "--task hub:a/b: a/b is not in the cache" in failure(lambda: get_task("hub:a/b"))


def test_the_library_itself_says_that_it_is_offline(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VANTAGE_DATA")
    assert "the Hub can not be reached" in failure(lambda: get_task("hmmt25").evaluation(1))


def test_copies_with_other_columns_or_broken_rows_are_named(copies: Path) -> None:
    put(copies / "math500", "test", [{"problems": "p", "answer": "1"}])
    assert failure(lambda: get_task("math500").evaluation(1)) == (
        "--task math500: its rows have no column 'problem', they have: problems, answer, did you mean 'problems'?"
    )
    put(copies / "math", "test", [ROWS["math"], {**ROWS["math"], "solution": "no box"}])
    problems = get_task("math").evaluation(2)
    assert problems[0].columns["answer"] == r"\frac{1}{2}"
    assert failure(lambda: problems[1]) == "--task math: row 1 can not be used: it has no answer"
    put(copies / "aime25", "train", [ROWS["aime25"]])
    assert "the dataset does not load from" in failure(lambda: get_task("aime25").evaluation(1))


def test_prompts_can_be_replaced_and_preceded(copies: Path) -> None:
    put(copies / "aime25", "test", [ROWS["aime25"]])
    task = get_task("aime25", prompt_template="Q: {prompt} {unknown}{}", system_prompt="Be brief.")
    assert task.evaluation(1)[0].prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Find it. {unknown}{}"},
    ]
    assert "must have {prompt}" in failure(lambda: get_task("aime25", prompt_template="Q: {problem}"))
    assert "writes its own prompts" in failure(lambda: get_task("sums", system_prompt="x"))
    assert "--answer-column: only data files" in failure(lambda: get_task("aime25", answer_column="x"))


# --- verifiers by name -------------------------------------------------------------------------------------------------


def test_a_verifier_scores_every_response_with_its_row(copies: Path) -> None:
    put(copies / "gsm8k", "train", [ROWS["gsm8k"]])
    task = get_task("gsm8k")
    problem = task.train[0]
    rewards = RewardSet(task.reward_funcs)
    rewards.check(problem.columns)
    found = rewards(
        prompts=[problem.prompt] * 2,
        completions=["it is 1023", "it is 5"],
        completion_ids=[[1], [2]],
        columns={name: [value] * 2 for name, value in problem.columns.items()},
    )
    assert found.total == [1.0, 0.0]
    assert rewards.names == ("math",)


def test_verifiers_are_named_as_rewards_and_get_columns_only(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Exact()
    monkeypatch.setattr(verifiers, "_MAKERS", {})
    verifiers.register_verifier("mine", lambda: judge)
    found = RewardSet([from_spec("mine")])(
        prompts=[[{"role": "user", "content": "q"}], "q"],
        completions=["a", "b"],
        completion_ids=[[], []],
        columns={"answer": ["a", "a"], "kwargs": [{"n": 1}, None]},
    )
    assert found.total == [1.0, 0.0]
    assert judge.rows == [{"answer": "a", "kwargs": {"n": 1}}, {"answer": "a", "kwargs": None}]


def test_a_row_that_can_not_be_judged_is_unscorable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "_MAKERS", {"math": Exact})
    found = RewardSet([from_spec("math")])(prompts=["q"], completions=["a"], completion_ids=[[]], columns={})
    assert found.total[0] != found.total[0]


def test_a_verifier_may_score_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Together(Exact):
        def score_many(self, texts: list[str], rows: list[dict[str, Any]]) -> list[float]:
            return [float(len(texts)) + row["x"] for row in rows]

    monkeypatch.setattr(verifiers, "_MAKERS", {"together": Together})
    assert verifiers.verifier_reward("together")(completions=["a", "b"], x=[0, 1]) == [2.0, 3.0]


def test_verifiers_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        failure(lambda: verifiers.verifier("maths")) == "--reward: there is no verifier 'maths', did you mean 'math'?"
    )
    monkeypatch.setattr(verifiers, "_MAKERS", {"a": "vantage.verifiers.nowhere:A", "b": "vantage.errors:Nothing"})
    assert "the verifier 'a' is not available here: ModuleNotFoundError" in failure(lambda: verifiers.verifier("a"))
    message = failure(lambda: verifiers.verifier_reward("b", "--task x"))
    assert message.startswith("--task x: the verifier 'b' is not available here: AttributeError")
    assert "known: a, b" in failure(lambda: verifiers.verifier("zzz"))


# --- reasoning-gym -----------------------------------------------------------------------------------------------------


ADDING = '''
class Adding:
    """As a generator of reasoning-gym: problem i of seed s depends on s + i. Evaluates answers, as some of these do."""

    def __init__(self, size, seed):
        self.size, self.seed = size, seed

    def __getitem__(self, index):
        number = self.seed + index
        return {"question": f"{number}+1?", "answer": str(number + 1), "metadata": {"source_index": index}}

    def score_answer(self, answer, entry):
        if not answer[0].isdigit():
            exec(answer)
            return float("nan")
        if "**" in answer:
            eval(answer)
        return 1.0 if answer == entry["answer"] else 0.25 if entry["answer"] in answer else 0.0


DATASETS = {"adding": Adding}
'''


@pytest.fixture
def fake_gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that worker processes find as well."""
    package = tmp_path / "fake" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "factory.py").write_text(ADDING)
    (package / "__init__.py").write_text(
        "from .factory import DATASETS\ndef create_dataset(name, size, seed): return DATASETS[name](size, seed)\n"
    )
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "reasoning_gym"}
    monkeypatch.syspath_prepend(str(package.parent))
    yield
    for name in ("reasoning_gym", "reasoning_gym.factory"):
        sys.modules.pop(name, None)
    sys.modules.update(own)


def gym_scores(task: Task, texts: Sequence[str]) -> list[float]:
    """What the first problem's verifier gives for responses."""
    problem = task.train[4]
    found = RewardSet(task.reward_funcs)(
        prompts=[problem.prompt] * len(texts), completions=texts, completion_ids=[[]] * len(texts),
        columns={name: [value] * len(texts) for name, value in problem.columns.items()},
    )  # fmt: skip
    return found.total


@pytest.mark.usefixtures("fake_gym")
def test_gym_problems_are_scored_by_their_own_verifier() -> None:
    task = get_task("gym:adding")
    problem = task.train[4]
    assert str(problem.prompt).startswith("4+1?\n\nThink step by step")
    texts = ["<answer>5</answer>", "<answer>5 or 6</answer>", "5", "<think><answer>5</answer></think>no"]
    assert gym_scores(task, texts) == [1.0, 0.25, 0.0, 0.0]
    assert all(map(math.isnan, gym_scores(task, ["<answer>x = y</answer>", "<answer>pass</answer>"])))
    assert task.answer_of("<answer> 5 </answer>") == "5"
    assert task.solution(problem) == texts[0]


@pytest.mark.usefixtures("fake_gym")
def test_what_a_gym_verifier_evaluates_harms_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vantage.tasks.reasoning.LIMITS", WorkerLimits(seconds=1.0))
    (tmp_path / "kept").write_text("kept")
    hostile = [
        "9**9**9**9",  # one call into C that no signal interrupts
        "import os; os._exit(0)",
        "import os; os.kill(os.getppid(), 9)",
        f"open({str(tmp_path / 'kept')!r}, 'w')",
        f"import os; os.system('touch {tmp_path / 'new'}')",
        "import socket; socket.socket()",
    ]
    found = gym_scores(get_task("gym:adding"), [f"<answer>{text}</answer>" for text in [*hostile, "5"]])
    assert found[-1] == 1.0
    assert all(score == 0.0 or math.isnan(score) for score in found[:-1])
    assert (tmp_path / "kept").read_text() == "kept"
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("fake_gym")
def test_gym_trains_and_evaluates_on_different_seeds() -> None:
    task = get_task("gym:adding")
    assert (len(task.train), len(task.evaluation(7))) == (1_000_000, 7)
    assert str(task.evaluation(2)[1].prompt).startswith("1000000001+1?")
    assert str(get_task("gym:adding:2").train[0].prompt).startswith("2000000+1?")
    assert get_task("gym:adding:2").evaluation(1)[0].prompt == task.evaluation(1)[0].prompt
    assert "did you mean 'adding'?" in failure(lambda: get_task("gym:addin"))
    assert "must be a whole number" in failure(lambda: get_task("gym:adding:x"))
    assert "the seed must be less than 1000" in failure(lambda: get_task("gym:adding:1000"))


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert "pip install 'vantage-rl[gym]'" in failure(lambda: get_task("gym:adding"))


def test_the_real_package_has_what_is_used() -> None:
    pytest.importorskip("reasoning_gym")
    task = get_task("gym:leg_counting")
    problem = task.train[0]
    right = f"<answer>{problem.columns['answer']}</answer>"
    found = RewardSet(task.reward_funcs)(
        prompts=[problem.prompt] * 2, completions=[right, "<answer>none</answer>"], completion_ids=[[]] * 2,
        columns={name: [value] * 2 for name, value in problem.columns.items()},
    )  # fmt: skip
    assert found.total == [1.0, 0.0]
    assert problem.prompt != task.evaluation(1)[0].prompt


# --- names -------------------------------------------------------------------------------------------------------------


def test_several_tasks_in_one_flag(tmp_path: Path) -> None:
    assert task_specs("aime24, math500") == ["aime24", "math500"]
    (tmp_path / "a,b.jsonl").write_text("{}")
    for spec in (f"jsonl:{tmp_path}/a,b.jsonl", f"{tmp_path}/a,b.jsonl"):
        assert task_specs(spec) == [spec]
    assert "names 'sums' twice" in failure(lambda: task_specs("sums,sums"))
    assert "has an empty name" in failure(lambda: task_specs("sums,"))


def test_the_list_of_tasks_shows_datasets_without_reading_them(
    copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list_tasks()
    shown = capsys.readouterr().out
    assert all(name in shown for name in CATALOG)


def test_a_benchmark_can_be_looked_at(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(copies / "aime25", "test", [ROWS["aime25"]])
    show_task("aime25", 1)
    shown = capsys.readouterr().out
    assert "Find it." in shown
    assert "71" in shown  # the wrong response beside the right one
