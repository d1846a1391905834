"""Made-up newswire in which a name alone does not tell what it names.

Half of the names come from one list for persons, places and organisations alike, and a few of them are words
of everyday as well; the others are put together from syllables, so that most of them were never seen in
training. What is meant stands in the words around: before the name, after it, or some way off. A memory of
each word's most frequent tag gets most ordinary words right and the names wrong.
"""

from __future__ import annotations

import random

from .data import Sentence

words = str.split  # for lists that stay readable

NAMES = words("""
    Amazon Austin Bill Carolina Chelsea Dallas Florence Georgia Grant Hamilton Houston Jackson Jordan Lincoln
    Madison Mark May Mercedes Orlando Paris Rose Sierra Sterling Sydney Victoria Washington Wells Will""")
ONSETS, VOWELS = words("b br d dr f g gl k kr l m n p r s st t tr v z"), "aeiou"
CODAS = words("l n r s t th nd sk")
TYPES = {"P": "PER", "L": "LOC", "O": "ORG"}

# A symbol in braces is one of its expansions; {P}, {L} and {O} are names of a person, a place and an
# organisation, {odd} is a word never seen before. Which of them it is, {role}, {site} or {firm} says, nearby
# or far off.
GRAMMAR = {
    "sentence": [
        "{subject} {did} .",
        "On {day} {subject} {did} .",
        "In {L} , {subject} {did} .",
        "{P} {did} and then became a {role} .",
        "{L} {did} and then became a {site} .",
        "{O} {did} and then became a {firm} .",
        "A {role} from {L} , {P} , works for {O} .",
        "{P} and {P} , both {role}s , {did} .",
        "{O} and {O} , both {firm}s , {did} .",
        "The {odd} {thing} in the {site} was put off .",
        "Will the {role} bill the {firm} for the {thing} ?",
    ],
    "subject": ["{P} , the {role} ,", "{L} , the {site} ,", "{O} , the {firm} ,", "{object}"],
    "object": [
        "the {role} {P}",
        "the {site} of {L}",
        "the {firm} {O}",
        "the {odd} {role} {P}",
        "the {odd} {firm} {O}",
    ],
    "did": [
        "backed the {thing}",
        "left {object}",
        "lost the {odd} {thing} to {object}",
        "may mark the end of the {thing}",
        "met {object} on {day}",
        "moved closer to {L}",
        "saw the {thing} on {day}",
        "will sue {object}",
    ],
    "role": words(
        "banker dancer doctor goalkeeper judge lawyer mayor painter pilot senator singer striker teacher"
    ),
    "site": words("capital city coast district harbour lake port province region town valley village"),
    "firm": words(
        "bank bookseller brewer carmaker chain club firm grocer newspaper publisher railway retailer"
    ),
    "day": words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "thing": words("bill budget film grant mark match plan price report rose strike team vote will"),
}


def generate(count: int, seed: int) -> list[Sentence]:
    """`count` made-up sentences with their tags, in IOB2.

    Example:
        >>> sentence = generate(1, seed=0)[0]
        >>> len(sentence.tokens) == len(sentence.tags)
        True
    """
    rng = random.Random(seed)
    return [_sentence(rng) for _ in range(count)]


def _sentence(rng: random.Random) -> Sentence:
    (first, tag), *others = _expand(rng, "{sentence}")
    tokens, tags = zip((first[0].upper() + first[1:], tag), *others, strict=True)
    return Sentence(tokens, tags)


def _expand(rng: random.Random, part: str) -> list[tuple[str, str]]:
    """Tokens and tags of a word or of a symbol, which may have an ending: {role}s."""
    if not part.startswith("{"):
        return [(part, "O")]
    symbol, ending = part.removeprefix("{").split("}")
    if symbol == "odd":
        return [(_invented(rng), "O")]
    if symbol in TYPES:
        letters = "B" + "I" * rng.choice((0, 0, 1))
        return [(_name(rng), f"{letter}-{TYPES[symbol]}") for letter in letters]
    expansion = rng.choice(GRAMMAR[symbol]) + ending
    return [pair for own in expansion.split() for pair in _expand(rng, own)]


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.5 else _invented(rng).title()


def _invented(rng: random.Random) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(2))
