"""Where a template ends in a message: by a second way of finding it."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from llmqueue_gym.workloads.sources.retrials import _word_start


@given(st.text(st.sampled_from("ab_9 .\n\r\u2028éß²٣漢\u0301"), min_size=1), st.data())
@example("one word\n", None)
@example("\n", None)
def test_a_template_ends_before_the_word_that_its_messages_begin_to_differ_in(text, data):
    end = len(text) if data is None else data.draw(st.integers(1, len(text)))
    assert _word_start(text, end) == re.search(r"\w*$", text[:end]).start()


def test_every_character_is_of_a_word_or_not_as_the_regular_expression_has_it():
    letters = "".join(map(chr, range(0x110000)))
    words = set(re.findall(r"\w", letters))
    assert all((_word_start(letter, 1) == 0) == (letter in words or letter == "\n")
               for letter in letters)  # fmt: skip
