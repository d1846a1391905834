"""Made-up questions in which the same words ask for opposite things.

Every question is about an ordered pair, such as turning cream into butter, in one of several wordings, some
of which name the pair backwards: "how is butter made from cream" asks the same, "how do i turn butter into
cream" does not. So a duplicate may share hardly a word, a question with the very same words may be none, and
only the order tells.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from .data import Pair

words = str.split  # for lists that stay readable


class Subject(NamedTuple):
    """Wordings that mean the same of {a} and {b}, and what these may be."""

    wordings: tuple[str, ...]
    words: list[str]


SUBJECTS = (
    Subject(
        (
            "how do i turn {a} into {b} ?",
            "what is the easiest way to get from {a} to {b} ?",
            "how can {a} be changed to {b} ?",
            "how is {b} made from {a} ?",
            "can one make {b} out of {a} , and how ?",
        ),
        words("asphalt butter charcoal cheese clay cream fuel glass gravel ink paper plastic soap starch"),
    ),
    Subject(
        (
            "is {a} better than {b} for a beginner ?",
            "should a newcomer prefer {a} over {b} ?",
            "does {a} beat {b} for someone new to it ?",
            "is {b} worse than {a} for a beginner ?",
            "starting out , would i be wrong to choose {b} instead of {a} ?",
        ),
        words("ada cobol forth fortran go haskell java julia lisp lua pascal perl python ruby rust scala"),
    ),
    Subject(
        (
            "how long is the train ride from {a} to {b} ?",
            "leaving {a} by rail , when will i be in {b} ?",
            "how many hours does the train take to {b} from {a} ?",
            "when does one get to {b} if one boards a train in {a} ?",
            "what time does a journey by rail from {a} to {b} need ?",
        ),
        words("athens berlin dublin geneva hanoi lagos lima madrid milan naples oslo prague riga vienna"),
    ),
    Subject(
        (
            "why are {a} afraid of {b} ?",
            "why do {b} frighten {a} ?",
            "what makes {a} run away from {b} ?",
            "what is it about {b} that scares {a} ?",
            "why do {a} fear {b} so much ?",
        ),
        words("bears cats cows crows dogs ducks foxes geese goats horses mice owls sheep snakes"),
    ),
    Subject(
        (
            "do i have to learn {a} before {b} ?",
            "should {b} wait until i know {a} ?",
            "is {a} needed in order to understand {b} ?",
            "does {b} build upon {a} ?",
            "would it help with {b} to study {a} first ?",
        ),
        words("algebra biology calculus chemistry ecology geology geometry grammar logic music physics"),
    ),
)


# Of every five unordered pairs of words: those of which each part asks.
PARTS = {"train": (0, 1, 2), "valid": (3,), "test": (4,)}


class Question(NamedTuple):
    """What is asked: a subject, and the ordered pair that it is asked of."""

    subject: Subject
    a: str
    b: str

    def put(self, wording: int) -> str:
        """The question in words."""
        return self.subject.wordings[wording].format(a=self.a, b=self.b)


def generate(count: int, seed: int, part: str = "train") -> list[Pair]:
    """`count` made-up pairs, half of them duplicates; half of the others ask with the two words exchanged.

    Args:
        part: One of PARTS. No question of one part is asked in another, nor with its words exchanged.

    Example:
        >>> generate(1, seed=0) == generate(1, seed=0)
        True
    """
    rng = random.Random(seed)
    everything = [
        Question(subject, *ab) for subject in SUBJECTS for ab in itertools.combinations(subject.words, 2)
    ]
    random.Random(0).shuffle(everything)  # dealt out the same way whatever the seed
    mine = [question for n, question in enumerate(everything) if n % 5 in PARTS[part]]
    return [_pair(rng, mine, duplicate=i % 2 == 0) for i in range(count)]


def _pair(rng: random.Random, mine: list[Question], duplicate: bool) -> Pair:
    question = _either_way(rng, rng.choice(mine))
    other = question
    if not duplicate:
        kind = rng.choice(("exchanged", "exchanged", "another word", "another subject"))
        words = {question.a, question.b}
        near = [q for q in mine if q.subject is question.subject and len(words & {q.a, q.b}) == 1]
        if kind == "exchanged":
            other = question._replace(a=question.b, b=question.a)
        elif kind == "another word" and near:
            other = _either_way(rng, rng.choice(near))
        else:
            other = _either_way(rng, rng.choice([q for q in mine if q.subject is not question.subject]))
    one, two = rng.sample(range(len(question.subject.wordings)), 2)
    return Pair(question.put(one), other.put(two), duplicate)


def _either_way(rng: random.Random, question: Question) -> Question:
    return question if rng.random() < 0.5 else question._replace(a=question.b, b=question.a)
