"""When is a user's next message the same request once more? A rule, and pairs to judge it by.

The pairs in ``retrial_pairs.json`` were written and labelled by hand for this project.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

THRESHOLD = 0.88
"""Least similarity of a retrial: the best F1 on the development half of the labelled pairs.

The measure itself was picked seeing all pairs: `llmqueue-bench data retrials` shows both halves."""

COMPARED = 600
"""Characters of a message that are compared; pasted material after them says little."""

LENGTH_RATIO = 1 / 3
"""Least ratio of the two messages' numbers of trigrams: a word out of a long request is another."""

WHOLE = 20_000
"""Characters of a message that are looked at for a piece that was replaced."""

PIECE = 20
"""Characters of a piece of a message that makes it another one, rather than a slip corrected."""

TEMPLATED, TEMPLATE_LENGTH = 5, 60
"""So many different texts that share so many characters come from an application's template."""

_CONTINUING = """
continue|go on|keep going|next|more|yes|no|ok|okay|thanks|thank you|hello|hi|sure|proceed
继续|下一个|更多|好|好的|是|是的|谢谢|продолжай|продолжить|дальше|ещё|да|нет|спасибо|weiter|ja|nein|danke
continua|continuar|sigue|sí|gracias|suite|oui|non|merci|sim|não|obrigado|devam|devam et|evet
続けて|はい|계속|네|tiếp tục|tiếp|اكمل|أكمل|نعم|شكرا
"""


_OTHERS = re.compile(r"[\W_]+")


def normalise(text: str, length: int = COMPARED) -> str:
    """Letters and digits of a message's beginning: no case, accents or punctuation."""
    plain = text[:length].casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain).casefold()
        plain = "".join(char for char in plain if not unicodedata.combining(char))
    return _OTHERS.sub(" ", plain).strip()


CONTINUING = frozenset(normalise(word) for word in re.split(r"[|\n]", _CONTINUING) if word)
"""Messages that ask for what follows and are no retrial when they are sent twice."""


def trigrams(normalised: str) -> frozenset[str]:
    """Character trigrams of a normalised message; a shorter one is its own."""
    places = range(max(1, len(normalised) - 2))
    return frozenset(normalised[i : i + 3] for i in places) if normalised else frozenset()


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the smaller set that the larger one has; 0 if it is smaller than LENGTH_RATIO.

    Who asks again adds or drops words, who asks for something else replaces them. Only the second
    lowers this measure, and so it tells them apart better than Dice's or difflib's ratio do.
    """
    low, high = sorted((len(one), len(other)))
    if not low or low < LENGTH_RATIO * high:
        return 0.0
    return len(one & other) / low


def similarity(previous: str, following: str) -> float:
    """Similarity of two consecutive user messages in [0, 1]; 0 for words like "continue"."""
    plain = normalise(following)
    if plain in CONTINUING:
        return 0.0
    return overlap(trigrams(normalise(previous)), trigrams(plain))


# --- messages of applications ---------------------------------------------------------------------


def without_template(texts: Sequence[str]) -> list[str]:
    """Texts less the beginning and the end that an application puts around them.

    These are what TEMPLATED different texts share and no two questions would, TEMPLATE_LENGTH
    characters or more; a text that is nothing else becomes empty. Where a template has variants
    ("... Translate: ", "... Summarise: "), the variant goes too, unless that would make two
    texts the same: they keep it, for it is what differs.
    """
    distinct = set(texts)
    bare = _bare(distinct, _innermost)
    outer: dict[str, str] = {}
    left = distinct
    while True:
        seen = Counter(bare.values())
        same = {text for text in left if seen[bare[text]] > 1}
        if not same:
            return [bare[text] for text in texts]
        outer = outer or _bare(distinct, _outermost)
        bare |= {text: outer[text] for text in same}
        left = left - same


def may_be_templated(text: str, texts: Sequence[str]) -> bool:
    """Whether so many of the texts begin or end as ``text`` that `without_template` may cut it.

    A tenth of the time that it takes to cut; where it says no, nothing is cut.
    """
    if len(text) < TEMPLATE_LENGTH:
        return False
    begin, end = text[:TEMPLATE_LENGTH], text[-TEMPLATE_LENGTH:]
    return (
        sum(other.startswith(begin) for other in texts) >= TEMPLATED
        or sum(other.endswith(end) for other in texts) >= TEMPLATED
    )


def _bare(texts: set[str], template: Callable[[list[str]], list[int]]) -> dict[str, str]:
    """Each text less what ``template`` finds at its beginning and, of the rest, at its end."""
    begins = _shared_beginnings(texts, template)
    rest = {text: text[begins[text] :] for text in texts}
    ends = _shared_beginnings({left[::-1] for left in rest.values()}, template)
    return {text: left[: len(left) - ends[left[::-1]]] for text, left in rest.items()}


def _shared_beginnings(
    texts: set[str], template: Callable[[list[str]], list[int]]
) -> dict[str, int]:
    """Characters of each text that are a template's, up to the end of a word."""
    order = sorted(texts)
    lengths = dict(zip(order, template(order), strict=True))
    for text, shared in lengths.items():
        if 0 < shared < len(text):
            lengths[text] = _word_start(text, shared)
    return lengths


def _word_start(text: str, end: int) -> int:
    """Return where the word begins that ends there, or before a line break there.

    Seen from behind: a search takes a millisecond for every few thousand characters before.
    """
    place = end - text.endswith("\n", 0, end)
    while place and (text[place - 1].isalnum() or text[place - 1] == "_"):
        place -= 1
    return place


def _innermost(order: list[str]) -> list[int]:
    """Most that each of the sorted texts shares with TEMPLATED - 1 others, 0 if it is too short."""
    lengths = [0] * len(order)
    for start in range(len(order) - TEMPLATED + 1):
        if shared := _long(order[start], order[start + TEMPLATED - 1]):
            for i in range(start, start + TEMPLATED):
                lengths[i] = max(lengths[i], shared)
    return lengths


def _outermost(order: list[str]) -> list[int]:
    """Beginning that all texts of a group share; neighbours that share enough are a group."""
    lengths = [0] * len(order)
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or not _long(order[stop - 1], order[stop]):
            if stop - start >= TEMPLATED:
                lengths[start:stop] = [_common(order[start], order[stop - 1])] * (stop - start)
            start = stop
    return lengths


def _long(one: str, other: str) -> int:
    """Length of the beginning that two different texts share; 0 if no template is so short."""
    if one[:TEMPLATE_LENGTH] != other[:TEMPLATE_LENGTH]:  # most texts: a glance will do
        return 0
    shared = _common(one, other)
    return shared if shared >= TEMPLATE_LENGTH else 0


def _common(one: str, other: str) -> int:
    """Length of the beginning that two texts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def asks_again(previous: str, following: str) -> bool:
    """Whether a message of an application's log asks the same once more.

    As `similarity` says, but whoever replaces a number asks for something else, and so does who
    replaces a piece of a message that is longer than what is compared.
    """
    one, other = normalise(previous, WHOLE), normalise(following, WHOLE)
    if not one or not other or other in CONTINUING:
        return False
    if one == other:
        return previous[WHOLE:] == following[WHOLE:]
    numbers, others = (set(re.findall(r"\d+", plain)) for plain in (one, other))
    if numbers - others and others - numbers:
        return False
    if max(len(one), len(other)) > COMPARED and _replaced(one, other):
        return False
    return similarity(previous, following) >= THRESHOLD


def _replaced(one: str, other: str) -> bool:
    """Whether what differs between two texts is a piece in place of another."""
    begin = _common(one, other)
    one, other = one[begin:], other[begin:]
    end = _common(one[::-1], other[::-1])
    one, other = one[: len(one) - end], other[: len(other) - end]
    if min(len(one), len(other)) < PIECE:
        return False
    return overlap(trigrams(one), trigrams(other)) < 0.5


# --- how good the rule is -------------------------------------------------------------------------


def labelled_pairs() -> list[dict[str, Any]]:
    """Hand-labelled pairs: ``language``, ``retrial`` (bool), ``previous`` and ``next``."""
    text = resources.files(__package__).joinpath("retrial_pairs.json").read_text("utf-8")
    pairs: list[dict[str, Any]] = json.loads(text)
    return pairs


def halves(pairs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Split into the half the threshold was chosen on, and the half it is judged by."""
    return {"development": pairs[::2], "test": pairs[1::2]}


def confusion(
    pairs: Iterable[Mapping[str, Any]], threshold: float = THRESHOLD
) -> dict[str, float | int]:
    """Precision, recall and F1 of the rule on labelled pairs, with the counts they come from."""
    hit = wrong = missed = rest = 0
    for pair in pairs:
        found = similarity(pair["previous"], pair["next"]) >= threshold
        hit += found and pair["retrial"]
        wrong += found and not pair["retrial"]
        missed += not found and pair["retrial"]
        rest += not found and not pair["retrial"]
    return {
        "retrials_found": hit,
        "false_alarms": wrong,
        "retrials_missed": missed,
        "others": rest,
        "precision": hit / (hit + wrong) if hit + wrong else 0.0,
        "recall": hit / (hit + missed) if hit + missed else 0.0,
        "f1": 2 * hit / (2 * hit + wrong + missed) if hit else 0.0,
    }


def rate_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate; (0, 1) without trials."""
    from scipy.stats import binomtest

    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
