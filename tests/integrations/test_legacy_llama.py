"""The same weights in mindformers' legacy Llama with biases: equal logits, tied and untied, grouped heads or not."""

import numpy as np
import pytest

from tests.model.small_models import build, run, small_options, weights_of

LENGTH = 12
NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm": "model.norm_out",
}


def their_name(name: str) -> str:
    """mindformers' name of one of our parameters."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def legacy_llama(options):
    """mindformers' Llama of the same sizes, in the form that runs on the CPU."""
    from mindspore_impl.training.mindformers import import_mindformers

    import_mindformers("models.llama")
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

    types = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    return LlamaForCausalLM(LlamaConfig(
        batch_size=2, seq_length=LENGTH, vocab_size=options.vocab_size, hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size, num_layers=options.num_hidden_layers,
        num_heads=options.num_attention_heads,
        n_kv_heads=options.num_key_value_heads, rms_norm_eps=options.rms_norm_eps, theta=options.rope_theta,
        pad_token_id=0,
        qkv_has_bias=options.qkv_bias, attn_proj_has_bias=options.o_bias,
        tie_word_embeddings=options.tie_word_embeddings, use_rope_slice=True, fused_rms_norm=False,
        use_flash_attention=False, **dict.fromkeys(types, "float32"),
    ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {"rope_theta": 4e6, "num_key_value_heads": 4}])
def test_logits_equal_those_of_mindformers_llama(changes, tmp_path, monkeypatch, ms_runtime):
    from mindspore import Tensor

    monkeypatch.chdir(tmp_path)  # mindformers writes ./output
    options = small_options(**changes)
    ours, theirs = build(options), legacy_llama(options)
    values = {their_name(name): value for name, value in weights_of(ours).items()}
    parameters = {parameter.name: parameter for parameter in theirs.get_parameters()}
    if options.tie_word_embeddings:
        parameters.pop("lm_head.weight", None)
    assert {name: value.shape for name, value in values.items()} == {n: tuple(p.shape) for n, p in parameters.items()}
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(values[name]))
    theirs.set_train(False)
    draw = np.random.default_rng(0)
    ids_BL = draw.integers(1, options.vocab_size, (2, LENGTH)).astype(np.int32)
    positions_BL = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    logits = run(ours, ids_BL, positions_BL, np.ones_like(ids_BL))
    found = theirs.lm_head(theirs.model(Tensor(ids_BL))).asnumpy().reshape(logits.shape)
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(logits, found, rtol=0, atol=2e-5)
