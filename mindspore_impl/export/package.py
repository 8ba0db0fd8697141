"""The export package: its manifest, and the verification of a folder against it.

    manifest.json            what it is: model, shapes, dtypes, cache, buckets, special ids, template, hashes
    weights.safetensors      the weights, once for all graphs (`stored.py`)
    prefill_64.mindir, ...   one graph a prompt bucket, without weights
    decode.mindir            one token against the static cache
    tokenizer.model          (or tokenizer.json)
    parity.json              the package against the training graph
    lite/*.mindir            optional: the same graphs converted by converter_lite, for `session.py`

The hash of each file, the shapes in the graphs and the header of the weights are held against the manifest.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.export import mindir
from mindspore_impl.export.options import PRECISIONS
from mindspore_impl.export.stored import Stored, check_weights, compute_dtype, stored_tensors
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import check_options, head_dim
from mindspore_impl.schema import upgrade
from mindspore_impl.text.tokenizer import check_tokenizer

VERSION = 2  # 1 had other names in `model` (schema.RENAMED)
MANIFEST, WEIGHTS, PARITY, DECODE, LITE = "manifest.json", "weights.safetensors", "parity.json", "decode", "lite"
_AGAIN = "copy the package again, or export it anew with tools/export.py"


@dataclass(frozen=True)
class Package:
    """A verified package. `files` maps names to {"bytes", "sha256"}, `graphs` names of graphs to their files."""

    folder: Path
    model: ModelOptions
    precision: str
    cache_length: int
    buckets: tuple[int, ...]
    tokenizer_file: str
    tokenizer_sha256: str
    template: str
    graphs: dict[str, str]
    files: dict[str, dict]
    manifest: dict

    def graph(self, name: str) -> Path:
        """The file of the graph called `name`: "decode" or "prefill_64"."""
        return files.inside(self.folder, self.graphs[name])

    def tokenizer(self):
        """The tokenizer that the package was made with."""
        from mindspore_impl.text.tokenizer import Tokenizer

        return Tokenizer.load(files.inside(self.folder, self.tokenizer_file), self.template)

    def check_tokenizer(self, tokenizer) -> None:
        """Refuse a tokenizer that is not the package's own. Raises UserError with both hashes."""
        check_tokenizer(
            self.tokenizer_sha256, tokenizer.sha256, self.folder, f"use its {self.tokenizer_file}, not {tokenizer.path}"
        )

    def bucket(self, length: int) -> int:
        """The prefill length for a prompt of `length` tokens.

        Raises UserError when the cache or the largest bucket is too short.
        """
        if length > self.cache_length:
            fault = f"the cache of {self.cache_length} tokens is too short for a prompt of {length} tokens"
            raise UserError(f"{self.folder}: {fault}; shorten it, or export with --cache-length {length} or more")
        if length > self.buckets[-1]:
            fault = f"the prompt of {length} tokens is longer than the largest bucket {self.buckets[-1]}"
            advice = f"shorten it, or export with a bucket of {length} or more (--buckets)"
            raise UserError(f"{self.folder}: {fault}; {advice}")
        return next(bucket for bucket in self.buckets if length <= bucket)


def prefill_name(bucket: int) -> str:
    """The name of the graph for prompts up to `bucket` tokens."""
    return f"prefill_{bucket}"


def graph_names(buckets) -> list[str]:
    """The graphs of a package."""
    return [*map(prefill_name, buckets), DECODE]


def graph_ports(model: ModelOptions, precision: str, slots: int, name: str) -> tuple[list[Stored], list[Stored]]:
    """Inputs and outputs of the graph `name`: ids and index, caches; logits, caches."""
    cache = Stored((1, model.num_key_value_heads, slots, head_dim(model)), compute_dtype(precision))
    caches = [cache] * (2 * model.num_hidden_layers)
    logits, number = Stored((1, model.vocab_size), "float32"), Stored((1,), "int32")
    if name == DECODE:
        return [number, number, *caches], [logits, *caches]
    return [Stored((1, int(name.removeprefix("prefill_"))), "int32"), number], [logits, *caches]


def _graphs(model: ModelOptions, precision: str, slots: int, buckets) -> dict[str, dict]:

    def plain(ports: list[Stored]) -> list[dict]:
        return [{"shape": list(stored.shape), "dtype": stored.dtype} for stored in ports]

    return {
        name: {"file": f"{name}.mindir", **dict(zip(("inputs", "outputs"), map(plain, ports), strict=True))}
        for name in graph_names(buckets)
        for ports in [graph_ports(model, precision, slots, name)]
    }


def write_manifest(folder: Path, model: ModelOptions, tokenizer, about: dict) -> None:
    """Copy the tokenizer's file and write manifest.json for the files in `folder`.

    about: precision, cache_length, buckets, target_soc, source_weights_sha256, memory_estimate_bytes, operators,
    versions.
    """
    tokenizer_file = "tokenizer" + Path(tokenizer.path).suffix
    shutil.copyfile(tokenizer.path, folder / tokenizer_file)
    kept = ("sha256", "vocab_size", "bos_id", "eos_id", "pad_id", "special")
    manifest = {
        "version": VERSION,
        **about,
        "model": dataclasses.asdict(model),
        "weights": WEIGHTS,
        "graphs": _graphs(model, about["precision"], about["cache_length"], about["buckets"]),
        "tokenizer": {"file": tokenizer_file} | {name: getattr(tokenizer, name) for name in kept},
        "chat_template": tokenizer.template.name,
        "files": {path.name: _entry(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    files.write_json(folder / MANIFEST, manifest)


def add_file(folder: Path, name: str) -> None:
    """Enter a further file of a package into its manifest."""
    manifest = files.read_json(folder / MANIFEST)
    manifest["files"][name] = _entry(folder / name)
    files.write_json(folder / MANIFEST, manifest)


def _entry(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}


def open_package(folder: str | Path) -> Package:
    """Open a package and verify it whole: hashes, sizes, shapes, operators, and that no path leaves the folder.

    Raises UserError that names the file and what differs.
    """
    package = _read_manifest(Path(folder))
    for name, entry in package.files.items():
        _check_file(files.inside(package.folder, name), entry)
    check_tokenizer(
        package.tokenizer_sha256, package.files[package.tokenizer_file]["sha256"], package.folder / MANIFEST, _AGAIN
    )
    wanted = stored_tensors(package.model, package.precision, package.cache_length)
    check_weights(package.folder / WEIGHTS, wanted)
    for name in package.graphs:
        _check_graph(package, name, wanted)
    return package


def is_package(folder: str | Path) -> bool:
    """Whether a folder claims to be a package (it may be damaged). A checkpoint has such files too, but a position."""
    present = all((Path(folder) / name).is_file() for name in (MANIFEST, WEIGHTS))
    return present and not (Path(folder) / "position.json").is_file()


def named_template(folder: str | Path) -> str | None:
    """The chat template that the manifest names, before anything is verified."""
    content = files.read_json(Path(folder) / MANIFEST)
    return content.get("chat_template") if isinstance(content, dict) else None


def _read_manifest(folder: Path) -> Package:
    path = folder / MANIFEST
    content = files.read_json(path)
    found = content.get("version") if isinstance(content, dict) else content
    if found not in (1, VERSION):
        raise UserError(f"{path}: version {found!r} of the format, this program reads {VERSION}; export again")
    try:
        model = ModelOptions(**(content["model"] if found == VERSION else upgrade(content["model"], "models.*")))
        tokenizer = content["tokenizer"]
        package = Package(
            folder, model, content["precision"], content["cache_length"], tuple(content["buckets"]),
            tokenizer["file"], tokenizer["sha256"], content["chat_template"],
            {name: entry["file"] for name, entry in content["graphs"].items()},
            {name: {"bytes": e["bytes"], "sha256": e["sha256"]} for name, e in content["files"].items()}, content,
        )  # fmt: skip
        numbers = (package.cache_length, *package.buckets)
        whole = bool(package.buckets) and all(type(number) is int and number > 0 for number in numbers)
        check_options(model, "model")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the manifest of a package ({error}); {_AGAIN}") from error
    if package.precision not in PRECISIONS:
        raise UserError(f"{path}: unknown precision {package.precision!r}; {_AGAIN}")
    if not whole or list(package.buckets) != sorted(set(package.buckets)) or package.buckets[-1] > package.cache_length:
        raise UserError(f"{path}: buckets {package.buckets} do not fit a cache of {package.cache_length}; {_AGAIN}")
    wanted = _graphs(model, package.precision, package.cache_length, package.buckets)
    if list(package.graphs) != list(wanted):
        raise UserError(f"{path}: its graphs are {list(package.graphs)}, not {list(wanted)}; {_AGAIN}")
    for name, graph in wanted.items():
        if any(content["graphs"][name].get(key) != graph[key] for key in ("inputs", "outputs")):
            raise UserError(f"{path}: the shapes of graph {name} do not follow from the model in it; {_AGAIN}")
    for name in (WEIGHTS, package.tokenizer_file, *package.graphs.values()):
        if name not in package.files:
            raise UserError(f"{path}: the file {name!r} is not in its list of hashes; {_AGAIN}")
    return package


def _check_file(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise UserError(f"{path}: the file is missing; {_AGAIN}")
    if path.stat().st_size != entry["bytes"]:
        raise UserError(f"{path}: {path.stat().st_size} bytes instead of {entry['bytes']}; {_AGAIN}")
    if files.sha256_file(path) != entry["sha256"]:
        raise UserError(f"{path}: its SHA-256 differs from the manifest (changed or damaged); {_AGAIN}")


def _check_graph(package: Package, name: str, wanted: dict[str, Stored]) -> None:
    """Hold inputs, outputs, weights and operators of a graph against the manifest."""
    path = package.graph(name)
    model = mindir.read_graph(path)
    mindir.check_plain(model, path)
    ports = graph_ports(package.model, package.precision, package.cache_length, name)
    for what, expected in zip(("inputs", "outputs"), ports, strict=True):
        if (found := getattr(mindir, what)(model)) != expected:
            shown = [", ".join(f"{s.dtype} {list(s.shape)}" for s in some[:3]) for some in (found, expected)]
            raise UserError(f"{path}: its {what} are {shown[0]}..., the manifest says {shown[1]}...; {_AGAIN}")
    for weight, stored in mindir.parameters(model).items():
        if wanted.get(weight) != stored:
            raise UserError(f"{path}: reads {weight!r} as {stored}, the package holds {wanted.get(weight)}; {_AGAIN}")


def materialise(folder: str | Path, target: Path, together: int = mindir.TOGETHER) -> list[Path]:
    """Write every graph of a package with its weights inside, for converter_lite; return the graph files.

    Raises UserError when the package is damaged or `target` holds something already.
    """
    from safetensors import safe_open

    package = open_package(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; choose another")
    with safe_open(package.folder / WEIGHTS, framework="numpy") as weights:
        return [
            mindir.materialise(package.graph(name), target / name, weights.get_tensor, together)[0]
            for name in package.graphs
        ]
