"""The tokenizers of this room's tests: one with byte fallback, a tiny one, and one built like the real file."""

import io
import itertools

import pytest

from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.text import chat
from mindspore_impl.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def corpus():
    from mindspore_impl.data import list_programs

    records = [
        *list_programs.generate(ListProgramsSet(count=300, thinking="reasoning")),
        *list_programs.generate(ListProgramsSet(count=100)),
    ]
    return [text for record in records for text in chat.segments(record)]


@pytest.fixture(scope="session")
def words():
    """Made-up words, enough of them for vocabularies with byte fallback."""
    syllables = ["ka", "lo", "mi", "ren", "tu", "shi", "po", "vel", "dan", "qui", "zor", "xem", "fy", "wub", "jag"]
    return [
        " ".join(map("".join, itertools.islice(itertools.product(syllables, repeat=3), start, start + 20)))
        for start in range(0, 3000, 20)
    ]


@pytest.fixture(scope="session")
def tokenizer(corpus, words, tmp_path_factory):
    return train_tokenizer(corpus + words, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 600)


@pytest.fixture(scope="session")
def tiny(corpus, tmp_path_factory):
    return train_tokenizer(corpus, tmp_path_factory.mktemp("tiny") / "tokenizer.model", 144)


@pytest.fixture(scope="session")
def pangu_like(corpus, words, tmp_path_factory):
    """Like the published file: pieces that SentencePiece itself would match inside text, in no round place."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus + words), model_writer=model, model_type="bpe", vocab_size=700,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, byte_fallback=True, minloglevel=3, num_threads=1,
        user_defined_symbols=[f"[unused{number}]" for number in range(20)],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pangu") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)
