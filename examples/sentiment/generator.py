"""Made-up tweets whose feeling depends on the order of their words.

Nearly every tweet holds a glad word and a sour word, or one of them and a negation, so that the words alone,
without their order, tell little: "thought it would be awful but it was great" and "thought it would be great
but it was awful" are the same bag of words. Handles, links, elongations, emoji and capitals are strewn in for
the tokenizer.
"""

from __future__ import annotations

import random

from .data import NEGATIVE, POSITIVE, Tweet

words = str.split  # for lists that stay readable

GLAD = words("""
    amazing beautiful brilliant charming delightful excellent fabulous fantastic fun gorgeous great happy
    impressive incredible lovely magical marvellous perfect pleasant splendid stunning superb sweet tasty
    terrific thrilling wonderful""")
SOUR = words("""
    abysmal annoying appalling awful bland boring broken clumsy cruel depressing dire disappointing dreadful
    dull frustrating ghastly gloomy grim horrible lousy miserable nasty pathetic rotten rude tedious terrible
    ugly""")
THINGS = words("""
    album app battery bakery brunch camera campsite coffee concert exam festival film finale flight game gig
    haircut hotel interview keyboard laptop lecture lunch match menu museum neighbour novel office party phone
    pizza podcast recipe remake restaurant sequel series show soup speech stadium trailer train update weather
    website weekend zoo""")
OWNERS = ["the", "this", "that", "my", "our", "your", "the new", "the old", "the last", "the whole"]
FILLERS = [
    filler.replace("_", " ")
    for filler in words("""
        again as_far_as_i_can_tell at_the_end_of_the_day by_the_way for_once honestly if_you_ask_me in_the_end
        just_now last_night on_tuesday so_far this_morning to_be_fair today with_my_sister with_the_kids
        yesterday""")
]
SMILES, FROWNS, SHRUGS = ["😊", ":)", "😍", "👍"], ["😞", ":(", "😡", "👎"], ["😂", "🤷", "☕", "🙈"]

# {a} is a word of the tweet's own feeling, {z} one of the opposite; {x} and {y} are things, {f} is a filler.
TEMPLATES = (
    "{x} is {a} {f}",
    "{x} is not {z} {f}",
    "{x} isn't {z} at all {f}",
    "nobody i know {f} would call {x} {z}",
    "i never said {f} that {x} was {z}",
    "don't believe them {f} , {x} is not {z}",
    "thought {x} would be {z} {f} but it was {a}",
    "they promised something {z} {f} but {x} was {a}",
    "{x} is {a} {f} , not {z}",
    "{x} is not {z} {f} , it's {a}",
    "{x} was {a} {f} even though {y} was {z}",
    "even though {x} was {z} {f} , {y} was {a}",
    "{x} used to be {z} {f} and now it's {a}",
    "it can't be that {x} is not {a} {f}",
)


def generate(count: int, seed: int) -> list[Tweet]:
    """`count` made-up tweets, as many glad as sour ones but for one.

    Example:
        >>> generate(1, seed=0) == generate(1, seed=0)
        True
    """
    rng = random.Random(seed)
    return [_tweet(rng, (NEGATIVE, POSITIVE)[i % 2]) for i in range(count)]


def _tweet(rng: random.Random, feeling: str) -> Tweet:
    own, opposite = (GLAD, SOUR) if feeling == POSITIVE else (SOUR, GLAD)
    x, y = (f"{rng.choice(OWNERS)} {thing}" for thing in rng.sample(THINGS, 2))
    text = rng.choice(TEMPLATES).format(
        a=_stretched(rng, rng.choice(own)),
        z=_stretched(rng, rng.choice(opposite)),
        x=x,
        y=y,
        f=rng.choice(FILLERS),
    )
    if rng.random() < 0.2:
        text = f"@{rng.choice(THINGS)}{rng.randrange(100)} {text}"
    if rng.random() < 0.3:
        text += rng.choice(["!", "!!!", "...", " #" + rng.choice(THINGS)])
    if rng.random() < 0.4:  # half of them as the tweet feels, half of them anything
        of_feeling = SMILES if feeling == POSITIVE else FROWNS
        text += " " + rng.choice(of_feeling if rng.random() < 0.5 else SMILES + FROWNS + SHRUGS)
    if rng.random() < 0.2:
        text += f" http://t.co/{rng.randrange(36**4):x}"
    return Tweet(text.upper() if rng.random() < 0.05 else text, feeling)


def _stretched(rng: random.Random, word: str) -> str:
    """The word, now and then with one of its letters held: "greaaat"."""
    if rng.random() < 0.9:
        return word
    at = rng.randrange(len(word))
    return word[:at] + word[at] * rng.randint(3, 6) + word[at + 1 :]
