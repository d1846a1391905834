"""Made-up English in which a verb agrees with a noun that may be many words away.

    the singer behind the old bridges near the lake sings today
    └─ one ──────────────────────────────────────── s

The nouns between the two are one or many at random, so that only the first tells the form of the verb. Pairs
of a beginning and both forms of its last verb test just that, as in Linzen, Dupoux, Goldberg 2016,
arXiv:1611.01368.
"""

from __future__ import annotations

import random

from .data import Probe

__all__ = ["probes", "text"]

NOUNS = ["author", "bird", "bridge", "captain", "dancer", "dog", "engine", "farmer", "garden", "king", "lake"]
NOUNS += ["nurse", "painter", "pilot", "river", "robot", "singer", "sister", "teacher", "tower"]
VERBS = ["appear", "fall", "laugh", "move", "rest", "shine", "sing", "sleep", "speak", "wait"]
LINKS = ["above", "behind", "beside", "near", "under", "with"]
SEEING = ["admire", "follow", "like", "remember", "see"]
ADJECTIVES = ["bright", "lonely", "old", "quiet", "tall", "young"]
ADVERBS = ["again", "alone", "at night", "in spring", "often", "there", "today"]
MOST_PHRASES = 5


def text(sentences: int, seed: int) -> str:
    """Sentences, one a line."""
    generator = random.Random(f"text {seed}")
    lines = []
    for _ in range(sentences):
        many, words = _beginning(generator, generator.randint(0, MOST_PHRASES))
        verb = _form(generator.choice(VERBS), not many)
        lines.append(" ".join([*words, verb, generator.choice(ADVERBS)]))
    return "\n".join(lines) + "\n"


def probes(count: int, seed: int) -> list[Probe]:
    """Beginnings with the right and the wrong form of their next word, `count` for each number of phrases."""
    generator = random.Random(f"probes {seed}")
    made = []
    for phrases in range(MOST_PHRASES + 1):
        for _ in range(count):
            many, words = _beginning(generator, phrases)
            verb = generator.choice(VERBS)
            distance = len(words) - next(n for n, word in enumerate(words) if _is_noun(word))
            made.append(Probe(" ".join(words), _form(verb, not many), _form(verb, many), distance))
    return made


def _form(word: str, ending: bool) -> str:
    """Many nouns end in s, and so does the verb of one."""
    return word + "s" if ending else word


def _is_noun(word: str) -> bool:
    return word in NOUNS or word.removesuffix("s") in NOUNS


def _noun(generator: random.Random) -> tuple[bool, list[str]]:
    """A noun with its article, and whether it is many."""
    many = generator.random() < 0.5
    adjective = [generator.choice(ADJECTIVES)] if generator.random() < 0.3 else []
    return many, ["the", *adjective, _form(generator.choice(NOUNS), many)]


def _beginning(generator: random.Random, phrases: int) -> tuple[bool, list[str]]:
    """All of a sentence up to its verb, and whether the subject is many."""
    many, words = _noun(generator)
    for _ in range(phrases):
        inner, noun = _noun(generator)
        if generator.random() < 0.7:
            words += [generator.choice(LINKS), *noun]
        else:  # a clause with a verb of its own, which agrees with the inner noun
            words += ["that", *noun, _form(generator.choice(SEEING), not inner)]
    return many, words
