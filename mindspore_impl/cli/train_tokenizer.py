"""Train a small SentencePiece tokenizer with the Pangu special pieces."""

from pathlib import Path

from mindspore_impl.cli.command import command, make_parser


@command
def main(arguments: list[str]) -> None:
    """Train a SentencePiece model on text or record files."""
    parser = make_parser(
        "Train a small SentencePiece model with the Pangu special pieces on text or JSONL record files.",
        "python tools/train_tokenizer.py --vocab-size 2048 --output tokenizer.model records.jsonl notes.txt",
    )
    parser.add_argument("inputs", nargs="+", type=Path, help=".jsonl files (every text field is used) or plain text")
    parser.add_argument("--output", type=Path, default=Path("tokenizer.model"))
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--character-coverage", type=float, default=1.0)
    options = parser.parse_args(arguments)
    from mindspore_impl.text.tokenizer import texts_of, train_tokenizer

    texts = (text for path in options.inputs for text in texts_of(path))
    tokenizer = train_tokenizer(
        texts, options.output, options.vocab_size, options.character_coverage,
        lambda name: "--" + name.replace("_", "-"),
    )  # fmt: skip
    print(f"{options.output}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256}")
