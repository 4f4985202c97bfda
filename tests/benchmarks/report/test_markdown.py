"""Text that others wrote, in our Markdown: a reader of Markdown shows it as it is."""

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from benchmarks.report.tables import escaped

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(markdown):
    """Texts of the paragraphs and cells; None for one in which anything is marked up."""
    parts = [token.children for token in READER.parse(markdown) if token.type == "inline"]
    return [
        "".join(token.content for token in part)
        if {token.type for token in part} <= {"text", "text_special"}
        else None
        for part in parts
    ]


@given(st.text(st.sampled_from("ab9_*~`[]()<>&|\\!#$;:/.-+ "), max_size=16))
def test_what_others_wrote_is_shown_as_it_is(text):
    words = " ".join(f"x {text} x".split())
    assert shown(escaped(words)) == [words]
    assert shown(f"| a | b |\n| --- | --- |\n| {escaped(words)} | c |") == ["a", "b", words, "c"]
