"""The embedded policy: plain transformers loads it, and its tokenizer loses nothing."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from vantage import tiny
from vantage.errors import UserError
from vantage.models.loading import model_path
from vantage.tasks import get_task
from vantage.tasks.programs import meets
from vantage.tasks.sums import Sums


def test_plain_transformers_loads_it_and_solves_a_sum():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny.ASSET), AutoTokenizer.from_pretrained(tiny.ASSET)
    assert isinstance(model, Qwen3ForCausalLM)
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 2e6
    ids = tokenizer("17+5=", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == "17+5=22\n>22"


def test_the_tokenizer_round_trips_every_character_of_every_world():
    tokenizer = AutoTokenizer.from_pretrained(tiny.ASSET)
    text = tiny.CHARACTERS + "  two spaces, 'quotes' n't .\n\n</think>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(text)
    assert set(Sums.alphabet) <= set(tiny.CHARACTERS)
    assert tokenizer.decode(tokenizer("é")["input_ids"]) == "<unk>"


@pytest.mark.parametrize("world", tiny.WORLDS)
def test_what_it_was_made_from_lies_beside_it_and_names_an_accuracy_between_035_and_05(world):
    card = json.loads((tiny.folder(f"tiny:{world}") / "sft.json").read_text())
    assert card["task"] == world
    assert 0.35 <= card["accuracy"] <= 0.5
    assert {"steps", "slips", "examples", "seed", "versions"} <= set(card)


def test_the_policy_of_programs_finds_an_expression():
    folder = tiny.folder("tiny:programs")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("5:64 6:70 1:40=", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=80, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert meets(text.rpartition(">")[2], [(5, 64), (6, 70), (1, 40), (10, 94)])


@pytest.mark.parametrize("world", ["tools", "instructions"])
def test_the_policies_of_other_worlds_solve_held_out_problems_without_sampling(world):
    folder, task = tiny.folder(f"tiny:{world}"), get_task(world)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = 0.0
    for problem in task.evaluation(20):
        ids = tokenizer(problem.prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=task.max_new_tokens, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        columns = {name: [value] for name, value in problem.columns.items()}
        right += task.reward_funcs[0](completions=[text], **columns)[0]
    assert right >= 10


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        ("tiny", "sums", "tiny"), ("tiny", "programs", "tiny:programs"), ("tiny", "programs:larger", "tiny:programs"),
        ("tiny:sums", "programs", "tiny:sums"), ("tiny", "jsonl:x.jsonl", "tiny"), ("some/model", "programs", "some/model"),
        ("tiny", "tools:larger", "tiny:tools"), ("tiny", "instructions", "tiny:instructions"),
    ],
)  # fmt: skip
def test_tiny_means_the_policy_of_the_task_s_world(model, task, expected):
    assert tiny.policy_for(model, task) == expected


def test_an_unknown_world_is_answered_with_what_there_is():
    assert tiny.folder("tiny") == tiny.folder("tiny:sums") == tiny.ASSET
    with pytest.raises(UserError, match=r"no embedded policy for 'program', did you mean 'programs'\?"):
        model_path("tiny:program")
    with pytest.raises(UserError, match="there are: tiny:sums, tiny:programs"):
        model_path("tiny:zzz")


def test_a_fresh_model_depends_on_its_seed_alone_and_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = tiny.fresh(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, _ = tiny.fresh(3)
    other, _ = tiny.fresh(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
