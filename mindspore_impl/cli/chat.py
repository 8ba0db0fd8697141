"""Chat with a model."""

import io
import sys
from pathlib import Path

from mindspore_impl.cli.command import add_tokenizer_options, command, make_parser
from mindspore_impl.schema import check_ranges


@command
def main(arguments: list[str]) -> None:
    """Hold a conversation with a model, or answer one prompt."""
    parser = make_parser(
        "Talk to a model, or answer one --prompt: a run or a stage of it, a checkpoint, a Hugging Face folder, or an "
        "export package. The answer is streamed to stdout.",
        "python tools/chat.py --model outputs/quickstart --prompt 'list a b c d apply reverse sort'",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="PATH")
    add_tokenizer_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and stop, instead of a conversation")
    parser.add_argument("--system", metavar="TEXT", help="content of the system turn")
    parser.add_argument("--thinking", choices=("reasoning", "fast"), default="fast")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the most probable token")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0 (default): no limit")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=2048, help="tokens of the whole conversation (default 2048)")
    options = parser.parse_args(arguments)
    from mindspore_impl.api import chat, load_model
    from mindspore_impl.curriculum.resolve import open_tokenizer, resolve_model_path
    from mindspore_impl.generation.conversation import answer, converse
    from mindspore_impl.generation.options import SamplingOptions
    from mindspore_impl.text.records import check_text

    sampling = SamplingOptions(
        options.temperature, options.top_p, options.top_k, options.repetition_penalty,
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    check_ranges(sampling, "sampling")
    for name in ("prompt", "system"):
        check_text(getattr(options, name) or "", f"--{name}")
    found = resolve_model_path(options.model)
    tokenizer = open_tokenizer(options.model, found, options.tokenizer, options.template)
    model = load_model(options.model, tokenizer)
    conversation = chat(model, tokenizer, sampling, options.thinking, options.system, options.context, options.seed)
    if options.prompt is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # bad bytes stay in their own turn
        converse(conversation)
    else:
        answer(conversation, options.prompt, sys.stdout)
