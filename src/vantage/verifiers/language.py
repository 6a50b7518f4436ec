"""Which language is a text in? A guess from scripts, tell-tale letters and the commonest words, without a model.

It is sure of a script of one language, such as Korean or Tamil, whatever the length. Languages that share a script are
told apart by letters that one of them has alone, or by function words, of which a text must hold a few: short texts, lists
of names and mixtures stay undecided.
"""

from __future__ import annotations

import re
from collections import Counter

MAX_CHARACTERS = 20_000
"""Only so much of the start of a text is looked at."""

# A script of one language of the list, or of several that are told apart below: first and last code point of its letters.
_SCRIPTS = {
    "el": (0x0370, 0x03FF),
    "cyrillic": (0x0400, 0x04FF),
    "he": (0x0590, 0x05FF),
    "arabic": (0x0600, 0x06FF),
    "devanagari": (0x0900, 0x097F),
    "bn": (0x0980, 0x09FF),
    "pa": (0x0A00, 0x0A7F),
    "gu": (0x0A80, 0x0AFF),
    "ta": (0x0B80, 0x0BFF),
    "te": (0x0C00, 0x0C7F),
    "kn": (0x0C80, 0x0CFF),
    "ml": (0x0D00, 0x0D7F),
    "th": (0x0E00, 0x0E7F),
    "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "ko": (0xAC00, 0xD7AF),
}
# In this order, as Persian's letters are Urdu's too; where none is there, words decide.
_LETTERS = {
    "cyrillic": {"uk": "іїєґ", "ru": "ыэё"},
    "arabic": {"ur": "ٹڈڑےںھہ", "fa": "پچژگکی", "ar": "ةىيكأإ"},
}
_WORDS = {
    "latin": {
        "en": "the and of to is in that it for with you this are was not have be as on by",
        "de": "der die das und ist nicht ein eine zu mit den von auf für sich dem auch wie ich wird",
        "fr": "le la les et est des une dans pour que qui pas sur avec vous du au ce il nous",
        "es": "el la los las y es en que una por con para del se no su lo como más está",
        "pt": "o os as e é em que uma por com para do da não se um ao como mais está",
        "it": "il lo gli e è che di una per con non della del sono come più nel si anche questo",
        "nl": "de het een en van is dat niet op te zijn met voor aan ook maar je wordt bij naar",
        "pl": "i w nie na się jest że z do to jak od po ale są przez dla oraz czy który",
        "fi": "ja on ei se että hän oli ovat mutta kun myös niin tai kuin joka tämä voi olla sen ole",
        "sv": "och är att det som en på för av med inte den till ett har jag om var kan vi",
        "vi": "và là của có không được cho các một những với trong người này đã để khi như tôi về",
        "sw": "na ya wa ni kwa katika la za cha hii kuwa kama au lakini hiyo watu yake sana pia wao",
        "tr": "ve bir bu için ile da de çok olarak daha gibi olan kadar ama ne var mi ben sonra değil",
        "id": "dan yang di itu dengan untuk ini dari tidak adalah ke pada dalam akan saya juga bisa ada mereka atau",
    },
    "cyrillic": {
        "ru": "и в не на что я с как это по но из он она мы вы для был",
        "bg": "и в не на да се за от е са че с до по като има със този",
        "uk": "і в не на що з як це до та у й за від для він вона ми",
    },
    "devanagari": {
        "hi": "है के की में का से को और नहीं पर हैं यह एक भी था कि",
        "mr": "आहे आणि च्या मध्ये हे ते नाही आहेत होते एक या साठी तर पण",
        "ne": "छ र को मा छन् हो गर्न भएको लागि यो पनि गर्ने हुन्छ एक",
    },
}
_FEW = 3
_LETTERS_SHARE = 0.01
_TOKEN = re.compile(r"[^\W\d_]+(?:[\u0900-\u0963]+[^\W\d_]*)*")

LANGUAGES = frozenset(
    [name for name in _SCRIPTS if len(name) == 2]
    + [name for group in (*_LETTERS.values(), *_WORDS.values()) for name in group]
    + ["zh", "ja"]
)
"""ISO 639-1 codes of the languages that can be told."""


def language_of(text: str) -> str | None:
    """The code of the text's language, or `None` where that is undecided."""
    text = text[:MAX_CHARACTERS]
    shares = Counter(filter(None, map(_script, text.lower())))
    if not shares:
        return None
    if shares["kana"]:  # Japanese is written in Chinese characters and kana; Chinese has no kana
        shares["ja"] = shares.pop("kana") + shares.pop("han", 0)
    script, count = shares.most_common(1)[0]
    if 2 * count < shares.total():
        return None
    by_letters = _by_letters(text.lower(), script, count)
    if by_letters:
        return by_letters
    if script in _WORDS:
        return _by_words(text.lower(), script)
    return {"han": "zh", "arabic": None}.get(script, script)


def _script(character: str) -> str | None:
    if character.isascii() or "\u00c0" <= character <= "\u024f" or "\u1e00" <= character <= "\u1eff":
        return "latin" if character.isalpha() else None
    point = ord(character)
    return next((name for name, (first, last) in _SCRIPTS.items() if first <= point <= last), None)


def _by_letters(text: str, script: str, count: int) -> str | None:
    """The first language of whose own letters there are enough among the script's `count` letters."""
    for name, letters in _LETTERS.get(script, {}).items():
        if sum(map(text.count, letters)) > _LETTERS_SHARE * count:
            return name
    return None


def _by_words(text: str, script: str) -> str | None:
    """The language of which the most function words are there, if there are a few and no other has as many."""
    found = Counter(_TOKEN.findall(text))
    counts = {name: sum(found[word] for word in words.split()) for name, words in _WORDS[script].items()}
    first, second = sorted(counts, key=lambda name: -counts[name])[:2]
    return first if counts[first] >= _FEW and counts[first] > counts[second] else None
