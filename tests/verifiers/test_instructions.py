"""The verifier of instructions: a table of right and wrong texts for each of IFEval's families, and its columns."""

from __future__ import annotations

import json
import time

import pytest

from vantage.verifiers import counting
from vantage.verifiers.constraints import FAMILIES
from vantage.verifiers.instructions import InstructionVerifier, loose_variants
from vantage.verifiers.language import LANGUAGES, language_of

# Id, arguments, texts that follow, texts that do not.
TABLE = [
    ("keywords:existence", {"keywords": ["fig", "egg"]}, ["Eggs and FIGS", "figegg"], ["fig", "e gg fig", ""]),
    ("keywords:existence", {"keywords": ["c++ (x)"]}, ["I like C++ (X)!"], ["ccc x"]),
    (
        "keywords:frequency",
        {"keyword": " fig", "frequency": 2, "relation": "at least"},
        ["fig, Figs", "figfigfig"],
        ["fig"],
    ),
    ("keywords:frequency", {"keyword": "fig", "frequency": 2, "relation": "less than"}, ["fig", "egg"], ["fig fig"]),
    ("keywords:forbidden_words", {"forbidden_words": ["fig", "c++"]}, ["figs", "c + +", "a"], ["Fig.", "c++", "(FIG)"]),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 2, "let_relation": "at least"},
        ["eE", "egg e"],
        ["e", "x"],
    ),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["a?"], ["a!"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein Haus und der Hund ist nicht da."],
        ["This is a house and the dog is not in it.", "Haus", "123", "Это дом"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "Is it? Yes... No", 'He said "no." She left. Dr. Who came.'],
        ["One. Two.", "Dr. A. B. Smith paid 3.50 e.g. for tea. Fine.", "1. one\n2. two", "... !!! ???"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["One", "No end"],
        ["A b. C d."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***\na\n***\nb\n***", "a\n\nc\n***\nb"],
        ["a", "a\n***\n\n***\nb", "a\n***\nb\n***\nc", "a ** b", ""],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["a b c", "a-b, c_d e"],
        ["a b", "!!! ???"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b", "it's"], ["it's so"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Fig"},
        ["a\n\nfig tree", "a b\n\n'FIG, tree", "a\n\n  fig's"],
        ["fig\n\na", "a\n\nfigs", "a\n\nfig\n\nb", "a\nfig", "fig"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[][x]"],
        ["[a", "[a]", "[a\n]", "[[a] b]"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["a\nP.S. b", "p. s. b"], ["PS b", "P.P.S"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["a\nP.P.S b", "p. p. s"], ["P.S. b"]),
    ("detectable_content:postscript", {"postscript_marker": "Note (1)"}, ["a note (1) b"], ["note 1"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "text\n  - a\n* b\nend", "-a\n\n\n- b"],
        ["* a", "* a\n* b\n- c", "** a\n** b", "a * b\nc * d", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is no.", "Well. My answer is maybe."],
        ["My answer is no", "yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** *b*", "*a* *b* *c*"],
        ["*a*", "**", "* *\n* *", "*a\nb* *c*", "a b"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section ", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 12 Section 3"],
        ["Section 1", "section 1 section 2", "Section a Section b"],
    ),
    ("detectable_format:multiple_sections", {"section_spliter": "(", "num_sections": 1}, ["( 1"], ["1"]),
    (
        "detectable_format:json_format",
        {},
        ["{\"a\": 1}", "```json\n[1, 2]\n```", "```\n3\n```", " \"x\" "],
        ["{a: 1}", "a", "{\"a\": 1} b", "```"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<poem>>\nof", "a <<b c>> d", "<<<x>>>"],
        ["<poem>", "<< >>", "<<a\nb>>", "<<>>", ">>a<<"],
    ),
    (
        "combination:two_responses",
        {},
        ["a******b", "******a\n******\nb******"],
        ["a", "a******a ", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hi. "},
        ["say hi. Hi!", " SAY HI."],
        ["Hi! Say hi.", "Say"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": " The end."},
        ["It is the end.", "\"The END.\" \n"],
        ["The end. Bye", "the end"],
    ),
    ("startend:quotation", {}, ['"a"', ' "a "b" c" ', '""'], ["a", '"', '"a', 'x"a"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["A and I", "WELL-KNOWN, OK!"],
        ["WELL-KNOWN x", "Ab Cd", "12 34"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["abc Def"],
        ["NASA"],
    ),
    (
        "change_case:english_capital",
        {},
        ["HELLO, 7 FIGS", "THE CAT IS IN THE HAT"],
        ["Hello", "123", "DAS IST EIN HUND UND DER IST NICHT DA", "ПРИВЕТ, МЫ"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["hello, 7 figs", "the cat is in the hat"],
        ["Hello", "123", "das ist ein hund und der ist nicht da"],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]  # fmt: skip


def columns(name: str, arguments: dict) -> dict:
    return {"instruction_id_list": [name], "kwargs": [arguments]}


@pytest.mark.parametrize(
    ("name", "arguments", "right", "wrong"), TABLE, ids=[f"{i}-{row[0]}" for i, row in enumerate(TABLE)]
)
def test_texts_follow_an_instruction_or_not(name, arguments, right, wrong):
    verifier = InstructionVerifier()
    assert verifier.complaint(columns(name, arguments)) is None
    assert {text: verifier.score(text, columns(name, arguments)) for text in right} == dict.fromkeys(right, 1.0)
    assert {text: verifier.score(text, columns(name, arguments)) for text in wrong} == dict.fromkeys(wrong, 0.0)


def test_the_table_has_every_family_of_ifeval():
    assert {row[0] for row in TABLE} == set(FAMILIES)
    assert len(FAMILIES) == 25


TWO = {"instruction_id_list": ["punctuation:no_comma", "startend:end_checker"], "kwargs": [{}, {"end_phrase": "bye"}]}


@pytest.mark.parametrize(
    ("text", "all_of_them", "share"), [("a bye", 1, 1), ("a, bye", 0, 0.5), ("a", 0, 0.5), ("a,", 0, 0)]
)
def test_all_instructions_count_or_their_share(text, all_of_them, share):
    assert InstructionVerifier().score(text, TWO) == all_of_them
    assert InstructionVerifier(share=True).score(text, TWO) == share
    assert InstructionVerifier().followed(text, TWO) == ["," not in text, text.endswith("bye")]


def test_columns_may_be_json_and_arguments_none():
    as_json = {name: json.dumps(value) for name, value in TWO.items()}
    assert InstructionVerifier().score("a bye", as_json) == 1.0
    empty = {"instruction_id_list": ("punctuation:no_comma",), "kwargs": [{"num_words": None, "relation": None}]}
    assert InstructionVerifier().score("a", empty) == 1.0
    assert InstructionVerifier().score("a", {"instruction_id_list": ["punctuation:no_comma"]}) == 1.0
    assert InstructionVerifier().score("a", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}) == 1.0
    renamed = InstructionVerifier(ids_column="ids", kwargs_column="arguments")
    assert renamed.score("a", {"ids": ["punctuation:no_comma"], "arguments": [{}]}) == 1.0


def test_nothing_and_thinking_alone_follow_nothing():
    for text in ("", " \n", "<think>a bye", "<think>a</think>", "a bye</think> "):
        assert InstructionVerifier(share=True).score(text, TWO) == 0.0
    assert InstructionVerifier().score("<think>well, hm</think>a bye", TWO) == 1.0


def test_loose_accuracy_forgives_a_first_line_a_last_one_and_asterisks():
    strict, loose = InstructionVerifier(), InstructionVerifier(loose=True)
    for text in (
        "Sure, here:\na bye",
        "a bye\nHope, it helps",
        "Sure,\na bye\nwell, well",
        "a **bye**",
        "Sure,\n*a bye*\nx",
    ):
        assert strict.score(text, TWO) == 0.0
        assert loose.score(text, TWO) == 1.0
    assert loose.score("a\nb, c\nd", TWO) == 0.0
    assert loose_variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "column 'instruction_id_list' must be a list, not NoneType"),
        ({"instruction_id_list": []}, "names no instructions"),
        ({"instruction_id_list": "punctuation"}, "is text that is not JSON"),
        ({"instruction_id_list": ["[" * 5]}, "there is no instruction '[[[[['"),
        (columns("punctuation:no_commas", {}), "'punctuation:no_commas', did you mean 'punctuation:no_comma'?"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "column 'kwargs' has 0 entries for 1 instructions"),
        ({"instruction_id_list": [3]}, "there is no instruction 3"),
        (columns("punctuation:no_comma", []), "the arguments of punctuation:no_comma must be a mapping, not list"),
        (columns("punctuation:no_comma", {"x": 1}), "has no argument 'x'; it has: none"),
        (columns("startend:end_checker", {"end_phrases": "x"}), "has no argument 'end_phrases', did you mean 'end_phrase'?"),
        (columns("startend:end_checker", {"end_phrase": None}), "startend:end_checker needs end_phrase, text"),
        (columns("startend:end_checker", {"end_phrase": 3}), "end_phrase is 3; it must be text"),
        (columns("keywords:existence", {"keywords": "fig"}), "keywords is 'fig'; it must be a list of texts"),
        (columns("length_constraints:number_words", {"num_words": 3, "relation": "at most"}), "'less than' or 'at least'"),
        (columns("length_constraints:number_paragraphs", {"num_paragraphs": 1.5}), "it must be a number from 0"),
        (columns("length_constraints:number_paragraphs", {"num_paragraphs": True}), "it must be a number from 0"),
        (columns("length_constraints:number_paragraphs", {"num_paragraphs": float("nan")}), "it must be a number from 0"),
        (columns("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}), "character"),
        (columns("language:response_language", {"language": "xx"}), "language is 'xx'; it must be one of ar, bg,"),
        (columns("language:response_language", {"language": ["de"]}), "it must be one of ar, bg,"),
    ],
)  # fmt: skip
def test_columns_that_can_not_be_read_are_complained_of_and_not_scored(given, message):
    assert message in (InstructionVerifier().complaint(given) or "")
    assert InstructionVerifier().score("a", given) is None


HOSTILE = [
    "\n" * 1_000_000, " " * 1_000_000, "[" * 1_000_000, "<" * 1_000_000, "<<" + ">" * 999_000, "*" * 1_000_000, "* " * 500_000,
    "." * 1_000_000, ". " * 500_000, "1. " * 333_000, "a." * 500_000, '."' * 500_000, "." + '"' * 999_000, "p." * 500_000,
    "Section" * 140_000, "Section " + "1" * 999_000, "{" * 1_000_000, '{"a":' * 200_000, "9" * 1_000_000, "a" * 1_000_000,
    "fig" * 333_000, "-" * 1_000_000, "- \n" * 333_000, "\n\n" * 500_000, '"' * 1_000_000, "\\" * 1_000_000, "\x00" * 1_000_000,
    "a-" * 500_000, "A'" * 500_000, "é" * 1_000_000, "ß" * 1_000_000, "\u0130" * 900_000, "x" * 1_000_001, "\ud800" * 1000,
    "etc. " * 200_000, "```json" * 140_000, "*\n" * 500_000, "<think>" * 140_000, "[" + "\n[" * 400_000, "Dr. " * 250_000,
]  # fmt: skip
CHECKED = [row for i, row in enumerate(TABLE) if row[0] not in {r[0] for r in TABLE[:i]}]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_of_anything_is_scored_in_time(text):
    every = {"instruction_id_list": [row[0] for row in CHECKED], "kwargs": [row[1] for row in CHECKED]}
    start = time.perf_counter()
    assert InstructionVerifier().score(text, every) == 0.0
    assert time.perf_counter() - start < 6


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0), ("No end", 1), ("One. Two.", 2), ("One.Two", 1), ("What?! No!", 2), ("He is no. 1 (really.) Yes.", 3),
        ("Mr. and Mrs. Fox live on St. Ann Road.", 1), ("It is 5 p.m. now.", 1), ("It was 5 p.m. She left.", 2),
        ("Eggs, figs, etc. are here.", 1), ("1. First one.\n2. Second one.", 2), ("So am I. You too.", 2),
        ("Wait… what?", 1), ("Wait... What?", 2),
        ("是的。不是！好？", 3), ('"Stop!" he said.', 2), ("lower. case. next", 3),
    ],
)  # fmt: skip
def test_sentences(text, count):
    assert counting.sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("I AM here", 2),
        ("WELL-KNOWN A-B-C", 2),
        ("DON'T", 2),
        ("DON’T", 1),
        ("U.S. x", 1),
        ("SNAKE_CASE", 1),
        ("7 7A", 1),
    ],
)
def test_words_in_capitals(text, count):
    assert counting.capital_words(text) == count


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is in the hat and it was not for you.", "en"), ("Der Hund ist nicht da und die Katze auch.", "de"),
        ("Le chat est dans la maison et il ne sort pas.", "fr"), ("El gato está en la casa y no sale por las noches.", "es"),
        ("O gato não está em casa e os cães também não.", "pt"), ("Il gatto è nella casa e non esce più di sera.", "it"),
        ("Kot jest w domu i nie wychodzi na dwór.", "pl"), ("Kissa on talossa ja se ei ole ulkona.", "fi"),
        ("Con mèo không có trong nhà và tôi đã tìm.", "vi"), ("Paka yuko ndani ya nyumba na hii ni nyumba ya watu.", "sw"),
        ("Кот не выходит из дома, и мы это знаем.", "ru"), ("Кіт не виходить з дому, і ми це знаємо.", "uk"),
        ("Котката не излиза от къщата и да се надяваме.", "bg"), ("القطة في البيت ولا تخرج إلى الشارع", "ar"),
        ("گربه در خانه است و بیرون نمی‌رود", "fa"), ("بلی گھر میں ہے اور باہر نہیں جاتی ہے", "ur"),
        ("बिल्ली घर में है और बाहर नहीं जाती है", "hi"), ("मांजर घरात आहे आणि ते बाहेर जात नाही", "mr"),
        ("बिरालो घरमा छ र बाहिर जाने छैन यो पनि छ", "ne"),
        ("বিড়াল ঘরে আছে", "bn"), ("ਬਿੱਲੀ ਘਰ ਵਿੱਚ ਹੈ", "pa"), ("બિલાડી ઘરમાં છે", "gu"),
        ("பூனை வீட்டில் உள்ளது", "ta"), ("పిల్లి ఇంట్లో ఉంది", "te"), ("ಬೆಕ್ಕು ಮನೆಯಲ್ಲಿದೆ", "kn"), ("പൂച്ച വീട്ടിൽ ഉണ്ട്", "ml"),
        ("แมวอยู่ในบ้าน", "th"), ("고양이는 집에 있다", "ko"),
        ("猫は家にいます", "ja"), ("猫在家里", "zh"), ("החתול בבית", "he"),
        ("Η γάτα είναι στο σπίτι", "el"), ("", None), ("123 !?", None), ("Anna Bob Carla", None), ("fig egg tuna corn", None),
    ],
)  # fmt: skip
def test_languages_of_ordinary_sentences(text, language):
    assert language_of(text) == language
    assert language is None or language in LANGUAGES
