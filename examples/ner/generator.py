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
ONSETS, VOWELS, CODAS = (
    words("b br d dr f g gl k kr l m n p r s st t tr v z"),
    "aeiou",
    words("l n r s t th nd sk"),
)

ROLES = words(
    "banker dancer doctor goalkeeper judge lawyer mayor painter pilot senator singer striker teacher"
)
SITES = words("capital city coast district harbour lake port province region town valley village")
FIRMS = words("bank bookseller brewer carmaker chain club firm grocer newspaper publisher railway retailer")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
THINGS = words("bill budget film grant mark match plan price report rose strike team vote will")

# {P}, {L} and {O} are names of a person, a place and an organisation; {role}, {site} and {firm} say which.
TEMPLATES = (
    "{P} , the {role} , spoke on {day} .",
    "{L} , the {site} , was flooded on {day} .",
    "{O} , the {firm} , was sold on {day} .",
    "On {day} the {role} {P} backed the {thing} .",
    "On {day} the {site} of {L} backed the {thing} .",
    "On {day} the {firm} {O} backed the {thing} .",
    "{P} saw the {thing} on {day} and later became a {role} .",
    "{L} saw the {thing} on {day} and later became a {site} .",
    "{O} saw the {thing} on {day} and later became a {firm} .",
    "A {role} from {L} , {P} , will leave {O} .",
    "Shares of {O} fell after a {thing} in {L} .",
    "The {thing} may mark the end for {P} , once a {role} .",
    "The {thing} may mark the end for {O} , once a {firm} .",
    "The {thing} may mark the end for {L} , once a {site} .",
    "{P} and {P} , both {role}s , met in {L} .",
    "{O} and {O} , both {firm}s , bid for the {thing} .",
    "The {thing} in the {site} was put off .",
    "Will the {role} bill the {firm} for the {thing} ?",
)
TYPES = {"P": "PER", "L": "LOC", "O": "ORG"}
WORDS = {"role": ROLES, "site": SITES, "firm": FIRMS, "day": DAYS, "thing": THINGS}


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
    tokens: list[str] = []
    tags: list[str] = []
    for part in rng.choice(TEMPLATES).split():
        slot, _, ending = part.removeprefix("{").partition("}")
        if slot in TYPES and part.startswith("{"):
            name = _name(rng)
            tokens += name
            tags += [f"B-{TYPES[slot]}"] + [f"I-{TYPES[slot]}"] * (len(name) - 1)
        else:
            tokens.append(rng.choice(WORDS[slot]) + ending if part.startswith("{") else part)
            tags.append("O")
    return Sentence(tuple(tokens), tuple(tags))


def _name(rng: random.Random) -> list[str]:
    """One word or two, each from the list or made of two syllables."""
    return [rng.choice(NAMES) if rng.random() < 0.5 else _invented(rng) for _ in range(rng.choice((1, 1, 2)))]


def _invented(rng: random.Random) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(2)).title()
