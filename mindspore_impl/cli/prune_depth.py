"""Remove layers of a model."""

from pathlib import Path

from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.cli.convert_weights import open_described, write_checkpoint
from mindspore_impl.model import prune


@command
def main(arguments: list[str]) -> None:
    """Write a checkpoint with some of a model's layers."""
    parser = make_parser("Keep some of a model's layers.", "python tools/prune_depth.py outputs/smollm2 outputs/half")
    parser.add_argument("path", type=Path, metavar="MODEL", help="checkpoint, HF folder, .gguf file, or stage of a run")
    parser.add_argument("out", type=Path, metavar="OUT")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--keep", type=int, metavar="N", help="layers, evenly spaced, with first and last (default: half)"
    )
    which.add_argument("--layers", metavar="0,2,4", help="these layers instead, counted from 0")
    print(prune_depth(**vars(parser.parse_args(arguments))))


def prune_depth(path: Path, out: Path, layers: str | None = None, keep: int | None = None) -> str:
    """Write a checkpoint folder `out` with some layers of the model at `path`; return a one-line summary.

    layers: such as "0,2,4"; else `keep` of them, evenly spaced (None: half, rounded up). Raises UserError when they are
    not there, and like import_weights.
    """
    source, _, tokenizer = open_described(path, None, "name a checkpoint, a Hugging Face folder or a stage of a run")
    total = source.options.num_hidden_layers
    if layers is None:
        kept = prune.evenly_spaced(total, -(-total // 2) if keep is None else keep)
    else:
        kept = prune.parse_layers(layers)
    done = write_checkpoint(prune.keep_layers(source, kept), path, tokenizer, out, {"layers": list(kept)})
    return f"layers {','.join(map(str, kept))} of {total} -> {done}"
