"""Splitting responses into segments, the states before them, and their deduplication (sheet T2; pitfalls 1, 3, 7)."""

from __future__ import annotations

import math
import random

import pytest

from vantage import tiny
from vantage.errors import UserError
from vantage.segments import (
    Segments,
    Splitter,
    low_probability_cuts,
    merge_short,
    separator_cuts,
    split,
    split_long,
    thin,
    token_texts,
    unique_states,
)
from vantage.tasks import get_task

TINY = tiny.tokenizer()
FREE = {"min_segment_tokens": 1, "max_segment_tokens": None, "max_segments": None}


class Bytes:
    """A tokenizer whose tokens are bytes of UTF-8, so that a character can take several; 256 is special."""

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class Pieces:
    """A tokenizer of given pieces that, as SentencePiece does, drops the space before the first piece it decodes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids, **_):
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


def encode(text: str) -> list[int]:
    return TINY(text, add_special_tokens=False)["input_ids"]


def cut(text: str, **options) -> list[str]:
    ids = encode(text)
    found = split(ids, Splitter(**(FREE | options)), TINY)
    return [TINY.decode(piece) for piece in found.pieces(ids)]


def test_steps_end_behind_runs_of_newlines():
    assert cut("a=1\n\nb=2\nso 3", kind="newline") == ["a=1\n\n", "b=2\n", "so 3"]
    assert cut("\na\n", kind="newline") == ["\n", "a\n"]


def test_a_separator_ends_its_step():
    assert cut("one. two. three.", separator=". ") == ["one. ", "two. ", "three."]


def test_a_separator_is_text_and_no_pattern():
    assert cut("a.b|c", separator="|") == ["a.b|", "c"]


def test_a_text_without_the_separator_is_one_segment():
    assert cut("abc", separator="; ") == ["abc"]


def test_a_token_that_straddles_a_cut_stays_on_its_left():
    assert separator_cuts(["a=1", "\n\nb", "=2", "\n", "so 3"], "\n") == [2, 4]


def test_a_token_with_several_steps_gives_one_cut():
    assert separator_cuts(["a\nb\nc", "d\n", "e"], "\n") == [1, 2]


def test_an_end_token_makes_no_segment_of_its_own():
    ids = [*encode("a\nb\n"), 1]
    assert split(ids, Splitter(kind="newline", **FREE), TINY).starts == (0, 2)


def test_characters_of_several_tokens_keep_their_tokens_together():
    text = "né\n½x\n"
    ids = [*text.encode(), 256]
    assert token_texts(ids, Bytes()) == ["n", "", "é", "\n", "", "½", "x", "\n", ""]
    found = split(ids, Splitter(kind="newline", **FREE), Bytes())
    assert [bytes(i for i in p if i < 256).decode() for p in found.pieces(ids)] == ["né\n", "½x\n"]


def test_a_response_that_ends_within_a_character_keeps_all_its_text():
    ids = list("a½".encode())[:-1]
    assert "".join(token_texts(ids, Bytes())) == "a�"


def test_spaces_that_belong_to_tokens_are_seen_where_decoding_one_token_drops_them():
    tokenizer = Pieces(["so", " then.", " we", " add"])
    assert token_texts([0, 1, 2, 3], tokenizer) == ["so", " then.", " we", " add"]
    found = split([0, 1, 2, 3], Splitter(separator=".", **FREE), tokenizer)
    assert found.starts == (0, 2)


@pytest.mark.parametrize(
    ("n", "every", "starts"),
    [(10, 3, (0, 3, 6, 9)), (9, 3, (0, 3, 6)), (2, 3, (0,)), (3, 3, (0,)), (1, 1, (0,)), (0, 3, ())],
)
def test_fixed_segments_never_start_at_the_end(n, every, starts):
    assert split(range(n), Splitter(kind="fixed", tokens=every, **FREE)).starts == starts


def test_low_probability_tokens_start_segments():
    logp = [-9.0, -0.1, math.log(0.19), math.log(0.21), -3.0]
    assert low_probability_cuts(logp, 0.2, None) == [2, 4]
    assert low_probability_cuts(logp, 0.2, 1) == [4]
    assert low_probability_cuts(logp, 0.2, 99) == [1, 2, 3, 4]
    assert low_probability_cuts([-1.0, -2.0, -2.0, -2.0], 0.2, 2) == [1, 2]


def test_low_probability_cuts_ignore_padding_and_ask_for_log_probs():
    found = split(range(3), Splitter(kind="lowprob", **FREE), logp=[-9.0, 0.0, -9.0, -9.0, -9.0])
    assert found.starts == (0, 2)
    with pytest.raises(ValueError, match="log-probs"):
        split(range(3), Splitter(kind="lowprob", **FREE))


def test_short_segments_are_merged_forward_and_a_short_tail_backward():
    assert merge_short([0, 3, 6, 9], 10, 2) == [0, 3, 6]
    assert merge_short([0, 5, 9], 13, 5) == [0, 5]
    assert merge_short([0, 1, 2, 3], 40, 3) == [0, 3]
    assert merge_short([0], 1, 5) == [0]


def test_long_segments_are_cut_into_near_equal_parts():
    assert split_long([0, 5], 13, 6) == [0, 5, 9]
    assert split_long([0], 1300, 512) == [0, 433, 866]


def test_thinning_keeps_the_first_start_and_the_order():
    assert thin(range(0, 28, 4), 3) == [0, 8, 16]
    assert thin(range(0, 100, 10), 4) == [0, 20, 50, 70]
    assert thin([0, 7], 4) == [0, 7]
    assert thin([0, 7, 9], 1) == [0]


def test_the_three_rules_follow_one_another():
    text = "a=1\n\nb=2\nso 3"
    rules = {"kind": "newline", "min_segment_tokens": 5, "max_segment_tokens": 6}
    assert split(encode(text), Splitter(**rules), TINY).starts == (0, 5, 9)
    assert split(encode(text), Splitter(**rules, max_segments=2), TINY).starts == (0, 5)


@pytest.mark.parametrize("kind", ["separator", "newline", "fixed", "lowprob"])
def test_segments_joined_are_the_response_and_none_is_empty(kind):
    draw = random.Random(kind)
    for _ in range(200):
        ids = [draw.choice([1, 2, 3, 4, 5, 20]) for _ in range(draw.randrange(0, 40))]
        logp = [-draw.expovariate(1.0) for _ in ids]
        smallest = draw.randint(1, 6)
        splitter = Splitter(
            kind=kind,
            separator=draw.choice(["\n", " ", "\n "]),
            tokens=draw.randint(1, 9),
            lowest=draw.choice([None, 3]),
            min_segment_tokens=smallest,
            max_segment_tokens=draw.choice([None, smallest + draw.randrange(5)]),
            max_segments=draw.choice([None, 1, 4]),
        )
        found = split(ids, splitter, TINY, logp)
        pieces = found.pieces(ids)
        assert [i for piece in pieces for i in piece] == ids
        assert all(pieces)
        assert [len(p) for p in pieces] == list(found.lengths)
        assert len(found) <= (splitter.max_segments or 99)
        assert bool(found.starts) == bool(ids)
        assert found.numbers() == [sum(s <= t for s in found.starts) - 1 for t in range(len(ids))]


def test_the_state_of_a_segment_ends_before_its_first_token():
    ids, found = list(range(20, 30)), Segments((0, 3, 6, 9), 10)
    assert [len(found.prefix(ids, k)) for k in range(4)] == [0, 3, 6, 9]
    assert found.prefix(ids, 0) == ()
    assert found.prefix(ids, 1) == (20, 21, 22)
    assert found.numbers() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_tokens_behind_a_state_do_not_move_it_while_only_text_decides():
    splitter = Splitter(kind="newline", **FREE)
    one, other = encode("ab\ncd\nxy\n12"), encode("ab\ncd\nq=7, and more\n")
    a, b = split(one, splitter, TINY), split(other, splitter, TINY)
    for k in (0, 1, 2):
        assert a.prefix(one, k) == b.prefix(other, k)


def test_starts_that_are_none_are_refused():
    for starts, length in [((1, 2), 5), ((0, 2, 2), 5), ((0, 5), 5), ((0,), 0), ((), 5)]:
        with pytest.raises(ValueError, match="no segment starts"):
            Segments(starts, length)


def test_a_response_without_tokens_has_no_segments():
    assert len(split([], Splitter(kind="newline"), TINY)) == 0
    assert Segments((), 0).pieces([]) == []


def test_equal_states_are_found_once_with_the_way_back():
    prompts = [[1, 2], [1, 2], [1, 2], [3]]
    responses = [[7, 8, 9, 9], [7, 8, 5], [6], []]
    cuts = [Segments((0, 2), 4), Segments((0, 2), 3), Segments((0,), 1), Segments((), 0)]
    found = unique_states(prompts, responses, cuts)
    assert list(zip(found.prompt_ids, found.prefix_ids)) == [([1, 2], ()), ([1, 2], (7, 8))]
    assert found.index == [[0, 1], [0, 1], [0], []]
    assert found.multiplicity == [3, 2]
    assert found.places == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1)]]
    assert found.spread([0.5, 0.25]) == [[0.5, 0.25], [0.5, 0.25], [0.5], []]
    assert found.pooled([1.0, 0.0, 0.5, 9.0]) == [0.5, 0.5]


def test_the_boundary_of_prompt_and_prefix_and_the_kind_keep_states_apart():
    cuts = [Segments((0, 1), 2), Segments((0,), 1)]
    assert len(unique_states([[1], [1, 2]], [[2, 3], [3]], cuts)) == 3
    assert len(unique_states([[1], [1]], [[2], [2]], [Segments((0,), 1)] * 2)) == 1
    assert len(unique_states([[1], [1]], [[2], [2]], [Segments((0,), 1)] * 2, kinds=["a", "b"])) == 2


def test_pooled_targets_leave_the_gradient_and_lose_variance():
    returns, value = [1.0, 0.0, 0.0, 1.0, 1.0], 0.3
    found = unique_states([[1]] * 5, [[2]] * 5, [Segments((0,), 1)] * 5)
    (mean,) = found.pooled(returns)
    each = sum(2 * (r - value) for r in returns) / 5  # derivative of 1 − (r − v)² by v
    assert 2 * (mean - value) == pytest.approx(each)


def test_a_splitter_of_a_task_takes_its_step():
    own = Splitter.of_task(get_task("sums"), max_segments=8)
    assert (own.separator, own.min_segment_tokens, own.max_segments) == ("\n", 1, 8)
    assert Splitter.of_task(get_task("sums"), min_segment_tokens=4).min_segment_tokens == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "--genac.kind: there is no 'words'; use one of separator, newline, fixed, lowprob"),
        ({"tokens": 0}, "--genac.tokens: 0 is out of range; it must be 1 or more"),
        ({"lowest": -1}, "--genac.lowest: -1 is out of range"),
        ({"max_segments": 0}, "--genac.max-segments: 0 is out of range"),
        ({"separator": ""}, "--genac.separator: it is empty"),
        ({"threshold": 1.0}, "--genac.threshold: 1.0 is out of range"),
        ({"min_segment_tokens": 600}, "--genac.max-segment-tokens: 512 is below the smallest segment of 600 tokens"),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(UserError) as caught:
        Splitter(**options, flags="--genac.")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
