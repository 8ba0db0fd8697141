"""config.json of a Hugging Face model <-> ModelOptions: PanguEmbedded and llama; other features are refused by name."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import build

CONFIG = "config.json"


@dataclass(frozen=True)
class _ModelType:
    architecture: str
    bias: str  # the key that puts a bias on q, k, v and o
    defaults: dict[str, Any]  # what a key means that config.json leaves out


MODEL_TYPES = {
    "PanguEmbedded": _ModelType(
        "PanguEmbeddedForCausalLM",
        "bias",
        {"bias": True, "rope_theta": 1.6e7, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    ),
    "llama": _ModelType(
        "LlamaForCausalLM",
        "attention_bias",
        {"attention_bias": False, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    ),
}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "max_position_embeddings")  # fmt: skip
# Keys that are read below, and the only values with which our model computes the same.
_ONLY = {"hidden_act": ("silu",), "attention_dropout": (0,), "partial_rotary_factor": (None, 1)}
# Keys that change nothing of what the network computes.
_HARMLESS = {
    "architectures", "model_type", "auto_map", "torch_dtype", "dtype", "transformers_version", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "pretraining_tp", "initializer_range", "return_dict", "id2label", "label2id", "max_length", "num_beams",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "num_return_sequences",
    "num_beam_groups", "_name_or_path", "_commit_hash", "_attn_implementation", "unsloth_version",
}  # fmt: skip


def read_config(path: str | Path) -> tuple[ModelOptions, dict]:
    """The model that a config.json (or the one in folder `path`) describes, and the file's content.

    Raises UserError that names the key: another model type or architecture, a size that is missing or impossible, or a
    feature that this model does not have (rope_scaling, mlp_bias, another activation, ...).
    """
    path = Path(path)
    path = path / CONFIG if path.is_dir() else path
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; name the {CONFIG} of a Hugging Face model")
    return options_of(content, str(path)), content


def options_of(content: dict, where: str) -> ModelOptions:
    """ModelOptions of the content of a config.json, which messages call `where`. Raises UserError (see read_config)."""
    from mindspore_impl.model.pangu import check_options

    kind = _model_type(content, where)
    given = {**kind.defaults, **{key: value for key, value in content.items() if value is not None}}
    given["rope_theta"] = _rope_theta(content, given, where)
    read = {*_SIZES, *kind.defaults, "num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters"}
    check_known(content, read | _HARMLESS, _ONLY, where)
    for key in _SIZES:
        if key not in given:
            raise UserError(f"{where}: {key}: no value given; use the config.json that belongs to these weights")
    if type(given[kind.bias]) is not bool:
        raise UserError(f"{where}: {kind.bias}: expected true or false, found {given[kind.bias]!r}")
    names = (*_SIZES, "head_dim", "rope_theta", "rms_norm_eps", "initializer_range", "tie_word_embeddings")
    values = {key: given[key] for key in names if key in given}
    heads = given.get("num_key_value_heads", given["num_attention_heads"])
    biases = dict.fromkeys(("qkv_bias", "o_bias"), given[kind.bias])
    options = build(ModelOptions, {**values, "num_key_value_heads": heads, **biases}, where)
    check_options(options, where)
    return options


def check_known(content: dict, known: Collection[str], only: dict[str, tuple], where: str) -> None:
    """Refuse by its name a key of a file (`content`, which messages call `where`) that may change what is computed.

    known: keys that are read elsewhere or change nothing; only: the values with which a key changes nothing, the last
    for the user. Raises UserError: another value of such a key, or an unknown key that is not empty, false or 0.
    """
    for key, value in content.items():
        if key in only and value not in only[key]:
            raise UserError(f"{where}: {key}: {value!r} is not supported; this model has {only[key][-1]!r}")
        if key not in known and key not in only and value not in (None, False, "", [], {}):
            raise UserError(f"{where}: {key}: {value!r} is not supported; remove it if the network computes the same")


def _model_type(content: dict, where: str) -> _ModelType:
    name = content.get("model_type")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise UserError(f"{where}: model_type: {name!r} is not supported; supported are {', '.join(MODEL_TYPES)}")
    known = [kind.architecture for kind in MODEL_TYPES.values()]
    architectures = content.get("architectures") or known[:1]
    if not isinstance(architectures, list) or any(entry not in known for entry in architectures):
        raise UserError(f"{where}: architectures: {architectures!r} is not supported; supported are {', '.join(known)}")
    return MODEL_TYPES[name]


def _rope_theta(content: dict, given: dict, where: str) -> Any:
    """The base of the plain rotary embedding; newer files hold it in rope_parameters."""
    for key in ("rope_scaling", "rope_parameters"):
        value = content.get(key)
        if value is None:
            continue
        kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, dict) else value
        if kind != "default" or not set(value) <= {"rope_type", "type", "rope_theta"}:
            raise UserError(f"{where}: {key}: {value!r} is not supported; this model has plain rotary positions (null)")
        if "rope_theta" in value:
            if content.get("rope_theta") not in (None, value["rope_theta"]):
                raise UserError(f"{where}: rope_theta: {content['rope_theta']!r} differs from {key}; keep one of them")
            return value["rope_theta"]
    return given["rope_theta"]


def config_of(options: ModelOptions, model_type: str, token_ids: dict[str, int]) -> dict:
    """The content of a config.json for a model. model_type: of MODEL_TYPES; token_ids: such as {"bos_token_id": 1}.

    Raises UserError when q, k and v have a bias but o has not (or the reverse), for which neither type has a key.
    """
    from mindspore_impl.model.pangu import head_dim

    if options.qkv_bias != options.o_bias:
        raise UserError(f"qkv_bias {options.qkv_bias} with o_bias {options.o_bias}: {model_type} has one key for both")
    kind = MODEL_TYPES[model_type]
    content = {"architectures": [kind.architecture], "model_type": model_type}
    content |= {key: getattr(options, key) for key in (*_SIZES, "num_key_value_heads")}
    content |= {
        "head_dim": head_dim(options),
        "hidden_act": "silu",
        "rope_theta": options.rope_theta,
        "rms_norm_eps": options.rms_norm_eps,
        kind.bias: options.qkv_bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": options.tie_word_embeddings,
        "initializer_range": options.initializer_range,
        "use_cache": True,
    }
    return content | token_ids


def token_ids(tokenizer) -> dict[str, int]:
    """What a config.json says of a text.tokenizer.Tokenizer, such as {"bos_token_id": 1}."""
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    return {key: token_id for key, token_id in ids.items() if token_id is not None}


def check_same(found: ModelOptions, wanted: ModelOptions, where: str, key: str) -> None:
    """Refuse weights (`found`, which messages call `where`) of another model than `wanted`, at the config path `key`.

    A vocabulary of 0 and a shorter position table in `wanted` fit. Raises UserError that lists each differing key.
    """
    from mindspore_impl.model.pangu import head_dim

    free = {"initializer_range", "recompute"} | ({"vocab_size"} if not wanted.vocab_size else set())
    if wanted.max_position_embeddings <= found.max_position_embeddings:
        free.add("max_position_embeddings")
    theirs, ours = (dataclasses.asdict(dataclasses.replace(o, head_dim=head_dim(o))) for o in (found, wanted))
    differing = [
        f"{key}.{name} is {value}, {name} of the weights {theirs[name]}"
        for name, value in ours.items()
        if name not in free and value != theirs[name]
    ]
    if differing:
        raise UserError(f"{where}: these weights are of another model: {'; '.join(differing)}; set {key} to match them")
