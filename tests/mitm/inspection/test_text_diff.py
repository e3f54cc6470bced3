"""Two texts, one against the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.mitm.inspection.text_diff import MAX_SENTENCES, diff_lines, sentences

TEXT = st.text(st.sampled_from("ab .!\n"), max_size=300)


def test_a_text_is_read_by_sentences_and_lines() -> None:
    assert sentences("One. Two!  Three?\n\n- four\n5.5 is it") == ["One.", "Two!", "Three?", "- four", "5.5 is it"]
    assert sentences(" \n ") == []


def test_equal_sentences_far_from_a_difference_are_counted() -> None:
    there = "".join(f"Sentence {number}. " for number in range(20))
    here = there.replace("Sentence 9.", "Something else entirely 9.")
    assert list(diff_lines(there, here)) == [
        "  … (7 equal sentences)",
        "  Sentence 7.",
        "  Sentence 8.",
        "- Sentence 9.",
        "+ Something else entirely 9.",
        "  Sentence 10.",
        "  Sentence 11.",
        "  … (8 equal sentences)",
    ]


def test_sentences_that_are_alike_are_compared_by_words() -> None:
    assert list(diff_lines("It is a red and round ball.", "It is a blue, round ball now.")) == [
        "~ It is a [-red and-]{+blue,+} round [-ball.-]{+ball now.+}"
    ]
    assert list(diff_lines("One. Two.", "One. Two. Three.")) == ["  One.", "  Two.", "+ Three."]
    assert list(diff_lines("", "x")) == ["+ x"]


def test_of_long_texts_a_part_is_compared() -> None:
    there, here = ("".join(f"{word} {number}.\n" for number in range(1000)) for word in ("a", "b"))
    lines = list(diff_lines(there, here))
    assert len(lines) <= 2 * MAX_SENTENCES + 1
    assert lines[-1] == "  … (850 more there and 850 more here are not compared)"
    looping = list(diff_lines("Yes. No. Maybe. " * 1000, "Yes. Maybe. No. " * 1000))
    assert len(looping) <= 2 * MAX_SENTENCES + 1


@given(TEXT, TEXT)
def test_each_sentence_that_is_in_one_text_only_is_marked(there: str, here: str) -> None:
    lines = list(diff_lines(there, here))
    unmarked = [line[2:] for line in lines if line.startswith("  ") and not line.startswith("  …")]
    assert all(line in sentences(there) and line in sentences(here) for line in unmarked)
    assert any(line[0] in "-+~" for line in lines) == (sentences(there) != sentences(here))
    assert [line[2:] for line in lines if line.startswith("- ") and line[2:] not in sentences(there)] == []
