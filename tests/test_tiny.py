"""The embedded policy: plain transformers loads it, and its tokenizer loses nothing."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from vantage import tiny
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


def test_what_it_was_made_from_lies_beside_it_and_names_an_accuracy_between_035_and_05():
    card = json.loads((tiny.ASSET / "sft.json").read_text())
    assert 0.35 <= card["accuracy"] <= 0.5
    assert {"steps", "slips", "examples", "seed", "versions"} <= set(card)


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
