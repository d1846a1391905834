"""From a tweet to its tokens: handles, links, elongations, emoticons and emoji."""

from __future__ import annotations

import html
import re

URL, USER = "<url>", "<user>"

# One emoji as it is seen, however many code points that takes: two regional indicators are a flag; otherwise
# a pictograph with its variation selector or skin tone, joined to others by zero-width joiners.
_PICTOGRAPH = "[\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
_MODIFIER = "[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]"
_EMOJI = rf"[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTOGRAPH}{_MODIFIER}*(?:\u200d{_PICTOGRAPH}{_MODIFIER}*)*"

_TOKEN = re.compile(
    rf"""
    (?P<url>    (?:https?://|www\.)\S+ )
  | (?P<user>   (?<!\w)@\w+ )
  | (?P<smile>  (?<!\w)[:;=][-o^']?[)(\]\[dp/\\|*] (?!\w) | <3 )   # :) ;-( =d :'( <3
  | (?P<emoji>  {_EMOJI} )
  | (?P<number> \d+(?:[.,:]\d+)* )
  | (?P<word>   \w+(?:['-]\w+)* )                                # don't, well-known; a hashtag without its #
  | (?P<marks>  (?P<mark>[!?.,…])(?P=mark)* )                    # !!! is one token
    """,
    re.VERBOSE,
)
_ELONGATION = re.compile(r"(\D)\1{2,}")


def tokenize(tweet: str) -> list[str]:
    """The tokens of a tweet, in lower case.

    Every handle is `<user>`, every link `<url>`: who and where do not matter, that there is one may. A
    character three times or more in a row is written twice, so that "sooo" and "sooooooo" share an index that
    "so" does not have. A hashtag is its word; an emoticon or emoji is a token; HTML's entities, which
    collected tweets are full of, are what they stand for. Other signs are left out.

    Example:
        >>> tokenize("@ann Sooooo GOOD!!! &lt;3 it isn’t #Monday 👍🏽 http://t.co/x")
        ['<user>', 'soo', 'good', '!!', '<3', 'it', "isn't", 'monday', '👍🏽', '<url>']
    """
    tokens = []
    for match in _TOKEN.finditer(html.unescape(tweet).replace("’", "'").lower()):
        if match.lastgroup == "url":
            tokens.append(URL)
        elif match.lastgroup == "user":
            tokens.append(USER)
        else:
            tokens.append(_ELONGATION.sub(r"\1\1", match.group()))
    return tokens
