"""Text to ids: SentencePiece with the Pangu rules, or the `tokenizers` library, under one chat template.

A special piece is inserted by its id and never parsed out of text: whoever writes "[unused10]" in a message gets the
ten characters. Each text between two special pieces is encoded on its own, with the file's own rules (dummy prefix,
normalisation), so a text gets the same ids wherever it stands, in training and in generation alike.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.text import template as templates
from mindspore_impl.text.records import check_text, text_lines
from mindspore_impl.text.template import SPECIAL_PIECES, TEMPLATE_TEXTS, Template

BYTE_FALLBACK_FROM = 512  # a smaller trained vocabulary has no room for the 256 byte pieces
LONGEST_SENTENCE = 1 << 26  # characters; SentencePiece silently skips a text above its limit in bytes
UNKNOWN_MARK = "\u2585"  # SentencePiece's own; it silently skips a text that holds it
UNLEARNABLE = {"\0", "\u2581"}  # no character of a piece, and SentencePiece's space mark, which decodes to a space
TRAINED, NOTE = "tokenizer.model", "fingerprint.json"  # of a run: the file it trained, and the file's hash


def check_tokenizer(made_with: str | None, sha256: str, what: object, advice: str) -> None:
    """Refuse `what` (a file or folder), made with the tokenizer of SHA-256 `made_with`, beside another one, `sha256`.

    made_with: None in an older file that does not say, which is read with a warning; advice: what to do. Raises
    UserError with both hashes.
    """
    if made_with is None:
        fault = "does not say with which tokenizer it was made, and is read as if with"
        print(f"warning: {what}: {fault} that of sha256 {sha256}", file=sys.stderr)
    elif made_with != sha256:
        fault = f"belongs to the tokenizer of sha256 {made_with}, but the one in use has {sha256}"
        raise UserError(f"{what}: {fault}, whose ids mean something else; {advice}")


class SentencePieceBackend:
    """One loaded `tokenizer.model`."""

    def __init__(self, content: bytes):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.load_from_serialized_proto(content)
        self.vocab_size, self.unknown_id = self.processor.vocab_size(), self.processor.unk_id()
        self.encode = self.processor.encode
        self.decode = self.processor.decode
        self.piece = self.processor.id_to_piece

    def find(self, piece: str) -> int | None:
        """The id of a piece, None if there is none."""
        token_id = self.processor.piece_to_id(piece)  # an unknown piece gives the id of <unk>
        return token_id if self.processor.id_to_piece(token_id) == piece else None


class TokenizersBackend:
    """One loaded `tokenizer.json` (byte-level BPE and the like) of the `tokenizers` library, an optional package."""

    def __init__(self, content: bytes):
        import tokenizers

        self.engine = tokenizers.Tokenizer.from_buffer(content)
        self.engine.no_truncation()
        self.engine.no_padding()
        self.engine.encode_special_tokens = True  # a special token written out in a text is encoded as text
        self.vocab_size = 1 + max(self.engine.get_vocab(with_added_tokens=True).values(), default=-1)  # ids have gaps
        self.unknown_id = None  # decodes to nothing, or to its name
        self.piece = self.engine.id_to_token
        self.find = self.engine.token_to_id

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are encoded as text."""
        return self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special pieces."""
        return self.engine.decode(ids, skip_special_tokens=True)


Backend = SentencePieceBackend | TokenizersBackend


class Tokenizer:
    """Text to ids and back.

    Attributes: template; vocab_size; bos_id (None: the template has none); eos_id (its closing piece); pad_id (0);
    special (piece to id); sha256 of the file; path.
    """

    def __init__(self, backend: Backend, sha256: str, path: Path, template: Template = templates.PANGU):
        self.backend, self.sha256, self.path, self.template = backend, sha256, path, template
        self.vocab_size = backend.vocab_size
        self.special = {piece: self._required(piece) for piece in template.pieces}
        self.bos_id = None if template.bos is None else self._required(template.bos)
        self.eos_id = self.special[template.turn_end]
        self.pad_id = 0
        self._special_ids = frozenset({*self.special.values(), self.bos_id} - {None})
        self._spelled = {token_id: self._spell(backend.piece(token_id)) for token_id in self._special_ids}

    @classmethod
    def load(cls, path: str | Path, template: str | None = None) -> "Tokenizer":
        """Read a SentencePiece `tokenizer.model`, or a `tokenizer.json`, told apart by the name's ending.

        template: of a registered chat template; None: pangu for the first kind, chatml for the second. Raises UserError
        when the file is absent, damaged or lacks a piece of the template, is not the one whose hash a run has noted
        beside it, or the package `tokenizers` is not installed.
        """
        path = Path(path)
        is_json = path.suffix == ".json"
        chosen = templates.find_template(template or ("chatml" if is_json else "pangu"))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: the tokenizer cannot be read ({error.strerror}); set tokenizer.path") from error
        try:
            backend = (TokenizersBackend if is_json else SentencePieceBackend)(content)
        except ImportError as error:
            raise UserError(f"{path}: needs the package tokenizers; pip install 'openpangu-posttrain[hf]'") from error
        except Exception as error:  # the libraries raise bare Exception, RuntimeError and OSError
            kind = "tokenizer.json of the tokenizers library" if is_json else "SentencePiece model"
            raise UserError(f"{path}: not a {kind} ({error}); set tokenizer.path to another file") from error
        if not is_json and backend.find("<unk>") not in (0, None):
            raise UserError(f"{path}: <unk> has id {backend.find('<unk>')}, not 0; use a Pangu tokenizer.model")
        sha256 = files.sha256_bytes(content)
        if path.name == TRAINED and (note := path.with_name(NOTE)).is_file():
            advice = f"restore {path}, or remove {path.parent} to train it again"
            check_tokenizer(files.read_json(note).get("sha256"), sha256, path.parent, advice)
        return cls(backend, sha256, path, chosen)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, and never the id of a special piece, even where the text spells one."""
        ids = self.backend.encode(text) if text else []
        if self._special_ids.isdisjoint(ids):
            return ids
        return [part for token_id in ids for part in self._spelled.get(token_id, (token_id,))]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`. Special pieces are left out, or written by name.

        An id outside the vocabulary and NUL become U+FFFD, since no text may hold NUL (`records.check_text`).
        decode(encode(x)) == x when the file does not normalise and can spell x (see `train_tokenizer`); U+2581 is
        SentencePiece's own space mark and comes back as a space.
        """
        texts, special = [], self._special_ids
        for is_text, run in groupby(map(int, ids), lambda one: one not in special and 0 <= one < self.vocab_size):
            if is_text:
                texts.append(self.backend.decode(list(run)))
            else:
                shown = (one for one in run if one not in special or not skip_special)
                texts += [self.backend.piece(one) if one in special else "\ufffd" for one in shown]
        return "".join(texts).replace("\0", "\ufffd")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The names of `ids`, for messages and tests."""
        return [self.backend.piece(int(token_id)) for token_id in ids]

    def _required(self, piece: str) -> int:
        found = self.backend.find(piece)
        if found is None:
            hint = "set tokenizer.template to the one that this model was trained with"
            if self.template is templates.PANGU:
                hint = "use openPangu's tokenizer.model, or one made by tools/train_tokenizer.py"
            raise UserError(f"{self.path}: no piece {piece}, which template {self.template.name} needs; {hint}")
        return found

    def _spell(self, piece: str) -> tuple[int, ...]:
        """A special piece's name, letter by letter, so that no match can form it."""
        ids = []
        for character in piece:
            found = [self.backend.find(character)]
            if found == [None]:
                found = [self.backend.find(f"<0x{byte:02X}>") for byte in character.encode()]
            ids += [self.pad_id if one is None else one for one in found]
        return tuple(ids)


def texts_of(path: Path) -> Iterator[str]:
    """Every piece of text in a JSONL file, or the lines of a text file. Raises UserError when it cannot be read."""

    def walk(value, where: str) -> Iterator[str]:
        if isinstance(value, str):
            yield check_text(value, where)
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from walk(item, where)

    if path.suffix == ".jsonl":
        for number, record in files.read_jsonl(path):
            yield from walk(record, f"{path}:{number}")
    else:
        yield from (line for _, line in text_lines(path))


def lost_characters(backend: Backend, counts: Counter) -> Counter:
    """Those of the counted characters that do not come back from their ids; what a normaliser makes of them counts."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFKC", text).strip()

    def comes_back(one: str) -> bool:
        ids = backend.encode(one)
        return backend.unknown_id not in ids and plain(backend.decode(ids)) == plain(one)

    return Counter({one: count for one, count in counts.items() if not comes_back(one)})


def warn_of_lost(tokenizer: Tokenizer, texts: Iterable[str], where: str) -> None:
    """Print a warning that begins with `where` when the tokenizer loses characters of `texts`."""
    if lost := lost_characters(tokenizer.backend, Counter(chain.from_iterable(texts))):
        print(f"warning: {where}: {_told(lost)}; {tokenizer.path} has no piece for them", file=sys.stderr)


def _told(lost: Counter) -> str:
    named = ", ".join(f"U+{ord(one):04X} ({count:,})" for one, count in lost.most_common(8))
    return f"{lost.total():,} characters, {len(lost):,} of them different, are lost: {named}"


def train_tokenizer(
    texts: Iterable[str], path: str | Path, vocab_size: int, character_coverage: float = 1.0,
    named: Callable[[str], str] = "tokenizer.{}".format,
) -> Tokenizer:  # fmt: skip
    """Train a small BPE vocabulary on `texts`, write it to `path`, and return it. The same texts give the same file.

    Its layout: <unk> 0 (also padding), <s> 1, the four special pieces, a dummy prefix before each text, no
    normalisation. Characters of the chat template are always covered. From vocab_size 512 on byte fallback spells
    whatever the corpus lacks; below, that becomes <unk>. Prints the share of the texts' characters that come back from
    their ids, with a warning when it is below `character_coverage`.

    Args:
        texts: What it is trained on.
        path: The file to write.
        vocab_size: Number of pieces.
        character_coverage: Share of the texts' characters to cover, from 0.98.
        named: Name of one of the last two -> the key or option of the caller, for messages.

    Raises UserError that names the size and the nearest one that works, or the coverage.
    """
    coverage = f"{named('character_coverage')}={character_coverage}"
    if not 0.98 <= character_coverage <= 1.0:
        raise UserError(f"{coverage}: must be from 0.98 to 1.0")
    texts = list(texts)
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise UserError(f"{path}: there is no text to train this tokenizer on; name files or data sets that hold some")
    counts = Counter(chain.from_iterable(texts))
    # A record shows each header about once; here it makes sure that a header is few pieces, whatever the caller passed.
    corpus += list(TEMPLATE_TEXTS) * (1 + len(corpus) // 16)
    content = _train(corpus, set(), vocab_size, character_coverage, named)
    lost = lost_characters(SentencePieceBackend(content), counts)
    if unseen := _to_cover(lost, lost.total() - (1 - character_coverage) * counts.total()):
        content = _train(corpus, unseen, vocab_size, character_coverage, named)
        lost = lost_characters(SentencePieceBackend(content), counts)
    files.atomic_write(path, lambda temporary: temporary.write_bytes(content) and None)
    share = 1 - lost.total() / counts.total()
    print(f"tokenizer: {share:.4%} of the {counts.total():,} characters of its texts come back from their ids")
    if share < character_coverage:
        print(f"warning: {coverage}: {_told(lost)}", file=sys.stderr)
    return Tokenizer.load(path)


def _to_cover(lost: Counter, excess: float) -> set[str]:
    """The most frequent lost characters that can be pieces, as many as it takes to make up `excess`."""
    found = set()
    for character, count in lost.most_common():
        if excess > 0 and character not in UNLEARNABLE:
            found.add(character)
            excess -= count
    return found


def _train(corpus: list[str], unseen: set[str], vocab_size: int, character_coverage: float, named: Callable) -> bytes:
    """The content of a SentencePiece model. unseen: characters to cover though the library does not count them."""
    import io

    import sentencepiece

    model = io.BytesIO()
    # No piece is formed over NUL.
    sentences = (
        text[start : start + LONGEST_SENTENCE].replace(UNKNOWN_MARK, "\0")
        for text in corpus
        for start in range(0, len(text), LONGEST_SENTENCE)
    )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            required_chars="".join(sorted(set("".join(TEMPLATE_TEXTS)) - {" "} | unseen)),
            user_defined_symbols=[UNKNOWN_MARK] if any(UNKNOWN_MARK in text for text in corpus) else [],
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=list(SPECIAL_PIECES),
            byte_fallback=vocab_size >= BYTE_FALLBACK_FROM,
            split_digits=True,
            split_by_unicode_script=False,  # so that 用户： can be one piece
            add_dummy_prefix=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=4 * LONGEST_SENTENCE,
            num_threads=1,  # the order of merges must not depend on the machine
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        raise _explain(str(error), vocab_size, named) from error
    return model.getvalue()


def _explain(message: str, vocab_size: int, named: Callable) -> UserError:
    """SentencePiece's words turned into the key and the nearest size that works."""
    fault = f"the tokenizer cannot be trained ({message})"
    if small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        remedy = f"(or lower {named('character_coverage')})"
        fault = f"too small for this corpus; the smallest that works is {small[1]} {remedy}"
    if large := re.search(r"value <= (\d+)", message):
        largest = int(large[1])
        if vocab_size >= BYTE_FALLBACK_FROM > largest:
            largest = min(BYTE_FALLBACK_FROM - 1, largest - 256)  # at that size the byte pieces are left out
        fault = f"too large for this corpus; the largest that works is {largest} (or train on more text)"
    return UserError(f"{named('vocab_size')}={vocab_size}: {fault}")
