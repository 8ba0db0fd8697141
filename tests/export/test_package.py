"""A package that is changed, cut, mixed up or used for what it cannot hold is refused, by name."""

import json
import shutil

import pytest

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.export import mindir
from mindspore_impl.export.package import open_package
from mindspore_impl.text.tokenizer import Tokenizer

FILES = ["weights.safetensors", "prefill_24.mindir", "decode.mindir", "tokenizer.model", "parity.json"]


def edit(package, change):
    manifest = json.loads((package / "manifest.json").read_text())
    change(manifest)
    (package / "manifest.json").write_text(json.dumps(manifest))


def rehash(package):
    """Make the list of hashes fit the files again, as someone would who swaps files on purpose."""

    def change(manifest):
        for name, entry in manifest["files"].items():
            entry |= {"bytes": (package / name).stat().st_size, "sha256": files.sha256_file(package / name)}

    edit(package, change)


def test_manifest_says_what_the_package_is(packages, tokenizer, options):
    folder = packages["int8"][0]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    assert set(manifest["files"]) == set(FILES)
    assert (manifest["precision"], manifest["cache_length"], manifest["buckets"]) == ("int8", 96, [24])
    assert manifest["target_soc"] == "Ascend310B" and manifest["source_weights_sha256"] == "cafe"
    assert manifest["tokenizer"]["eos_id"] == tokenizer.eos_id and manifest["chat_template"] == "pangu"
    assert manifest["tokenizer"]["sha256"] == tokenizer.sha256 == files.sha256_file(folder / "tokenizer.model")
    ports = manifest["graphs"]["decode"]
    assert ports["inputs"][0] == {"shape": [1], "dtype": "int32"}
    assert ports["inputs"][2] == {"shape": [1, 2, 96, 6], "dtype": "float16"}
    assert ports["outputs"][0] == {"shape": [1, options.vocab_size], "dtype": "float32"}
    assert manifest["memory_estimate_bytes"]["weights"] > 0
    assert open_package(folder).tokenizer().sha256 == tokenizer.sha256


@pytest.mark.parametrize("name", FILES)
def test_changed_byte(ms_runtime, package, name):
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: its SHA-256 differs from the manifest"):
        open_package(package)


def test_cut_and_missing_file(ms_runtime, package):
    path = package / "decode.mindir"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"decode\.mindir: \d+ bytes instead of \d+"):
        open_package(package)
    path.unlink()
    with pytest.raises(UserError, match=r"decode\.mindir: the file is missing"):
        open_package(package)


def _outside(manifest):
    manifest["graphs"]["decode"]["file"] = "../decode.mindir"
    manifest["files"]["../decode.mindir"] = manifest["files"]["decode.mindir"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].update({"../decode.mindir": m["files"]["decode.mindir"]}), "points outside this folder"),
        (lambda m: m["files"].update({"/etc/hostname": m["files"]["decode.mindir"]}), "points outside this folder"),
        (_outside, "points outside this folder"),
        (lambda m: m.update(version=9), "version 9 "),
        (lambda m: m.pop("buckets"), "not the manifest of a package .'buckets'."),
        (lambda m: m.update(cache_length=128), "the shapes of graph prefill_12 do not follow"),
        (lambda m: m["model"].update(num_hidden_layers=3), "the shapes of graph prefill_12 do not follow"),
        (lambda m: m.update(buckets=[12]), "its graphs are .*, not .'prefill_12', 'decode'."),
        (lambda m: m.update(buckets=[12, 200]), "buckets .12, 200. do not fit a cache of 96"),
        (lambda m: m.update(precision="int4"), "unknown precision 'int4'"),
        (lambda m: m["files"].pop("decode.mindir"), "'decode.mindir' is not in its list of hashes"),
        (lambda m: m["tokenizer"].update(sha256="0" * 64), "manifest.json: .*" + "0" * 64),
        (lambda m: m["model"].update(hidden_size=32, head_dim=6), "is float32 .120, 24. there, .* needs .* .120, 32."),
    ],
)
def test_changed_manifest(ms_runtime, package, change, message):
    shutil.copy(package / "decode.mindir", package.parent)  # so that only its place is wrong
    edit(package, change)
    with pytest.raises(UserError, match=message):
        open_package(package)


def test_manifest_of_version_1_is_read(ms_runtime, package):
    def change(manifest):
        manifest["version"], model = 1, manifest["model"]
        for new, old in (("num_hidden_layers", "num_layers"), ("tie_word_embeddings", "tie_embeddings")):
            model[old] = model.pop(new)

    before = open_package(package).model
    edit(package, change)
    assert open_package(package).model == before


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_manifest_that_is_none(ms_runtime, package, text):
    (package / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_package(package)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decode.mindir", r"decode\.mindir: its inputs are .*float16"),
        ("weights.safetensors", r"weights\.safetensors: .* is float16 .* needs float32"),
    ],
)
def test_file_of_another_package(ms_runtime, package, packages, name, message):
    shutil.copy(packages["fp16"][0] / name, package / name)
    rehash(package)
    with pytest.raises(UserError, match=message):
        open_package(package)


@pytest.mark.parametrize(
    ("field", "message"),
    [("ref_key", r"decode\.mindir: reads 'Custom'"), ("op_type", r"decode\.mindir: holds the operator Custom")],
)
def test_graph_with_other_weights_or_a_custom_operator(ms_runtime, package, field, message):
    model = mindir.read_graph(package / "decode.mindir")
    softmax = next(primitive for primitive in model.primitives if primitive.op_type == "Softmax")
    setattr(model.graph.parameter[0] if field == "ref_key" else softmax, field, "Custom")
    (package / "decode.mindir").write_bytes(model.SerializeToString())
    rehash(package)
    with pytest.raises(UserError, match=message):
        open_package(package)


def test_foreign_tokenizer(ms_runtime, package, tmp_path):
    from mindspore_impl.text.tokenizer import train_tokenizer

    other = train_tokenizer(["a b c d e f g h"] * 4, tmp_path / "other.model", 60)
    opened = open_package(package)
    opened.check_tokenizer(Tokenizer.load(package / "tokenizer.model"))
    with pytest.raises(UserError, match=f"{other.sha256}.*use its tokenizer.model"):
        opened.check_tokenizer(other)


def test_cache_too_short_and_prompt_beyond_the_buckets(ms_runtime, package):
    opened = open_package(package)
    assert [opened.bucket(length) for length in (1, 12, 13, 24)] == [12, 12, 24, 24]
    with pytest.raises(
        UserError, match="cache of 96 tokens is too short for a prompt of 97 tokens; .*--cache-length 97"
    ):
        opened.bucket(97)
    with pytest.raises(UserError, match="prompt of 25 tokens is longer than the largest bucket 24"):
        opened.bucket(25)
