"""Words, on the quick path for ASCII and on the general one."""

from mindspore_impl.data.selection.words import words


def test_ascii_words_are_what_the_general_path_finds():
    every = "".join(f"Ab{chr(code)}9 {chr(code)}" for code in range(128))
    assert every.isascii() and [*words(every), "é"] == words(every + " é")
