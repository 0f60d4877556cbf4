"""The words of an answer: made from the words of the prompt and a random generator, so that the same prompt gets the same answer."""

from __future__ import annotations

import random
import re

_WORD = re.compile(r"[^\W\d_][\w'-]{3,}")
_ASKED_LENGTH = re.compile(r"\b(\d{1,5})[ -](?:words|word|tokens)\b")
_COMMON = re.compile(
    r"about|after|again|answer|anything|because|before|being|between|could|does|doing|each|every|explain|from|give|"
    r"have|help|here|into|just|like|list|make|many|more|most|much|need|only|other|over|please|question|reply|same|"
    r"shall|should|some|such|tell|than|that|their|them|then|there|these|they|thing|think|this|those|through|want|"
    r"were|what|when|where|which|while|will|with|words|would|write|your"
)
_OPENINGS = (
    "Here is what matters about {a}.",
    "Short answer: {a} depends on {b}.",
    "Good question about {a}.",
    "Let me take {a} step by step.",
    "In brief, {a} works together with {b}.",
)
_BODIES = (
    "First, check that {a} is set up the way your team expects.",
    "Most people start with {a} and only later look at {b}.",
    "The usual mistake is to change {a} without measuring {b}.",
    "A small example with {a} makes the difference to {b} visible.",
    "If {a} fails, look at {b} before anything else.",
    "You can compare {a} with {b} over a week to see the trend.",
    "Keep {a} simple; the cost of {b} grows quickly.",
    "Note that {a} was changed recently, so older advice about {b} may be wrong.",
    "When in doubt, write down what {a} should do and test it.",
    "There are three parts: {a}, {b} and the way they meet.",
    "For a larger team, {a} should have one owner.",
    "The numbers for {b} confirm this, although {a} varies by day.",
)
_CLOSINGS = (
    "Tell me more about {a} if you want a deeper answer.",
    "That should be enough to decide about {a}.",
    "Next, I would look at {b}.",
    "Let me know how {a} turns out.",
)
SENTENCES_MAX = 9
ASKED_WORDS_MAX = 20_000


def keywords(text: str) -> list[str]:
    """The telling words of a prompt, in order, each once; never empty."""
    found = dict.fromkeys(word for word in _WORD.findall(text) if not _COMMON.fullmatch(word.lower()))
    return list(found)[:32] or ["this topic"]


def answer(prompt: str, draw: random.Random) -> str:
    """An answer to a prompt. A prompt that asks for so many words gets as many."""
    words = keywords(prompt)
    asked = _ASKED_LENGTH.search(prompt)
    if asked is not None:
        return _of_length(min(int(asked[1]), ASKED_WORDS_MAX), words, draw)
    sentences = [_sentence(_OPENINGS, words, draw)]
    sentences += [_sentence(_BODIES, words, draw) for _ in range(draw.randint(1, SENTENCES_MAX - 2))]
    sentences.append(_sentence(_CLOSINGS, words, draw))
    return " ".join(sentences)


def _of_length(count: int, words: list[str], draw: random.Random) -> str:
    """Exactly so many words, at least one."""
    made: list[str] = []
    while len(made) < count:
        made += _sentence(_BODIES, words, draw).split(" ")
    return " ".join(made[: max(1, count)])


def _sentence(forms: tuple[str, ...], words: list[str], draw: random.Random) -> str:
    return draw.choice(forms).format(a=draw.choice(words), b=draw.choice(words))
