"""The model once more, plainly, in float64 NumPy: the oracle of this room's tests. One document at a time."""

import numpy as np


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x_LHC, positions_L, theta):
    """Rotary embedding from its definition: pair (i, i + C/2) turns by position * theta^(-2i/C)."""
    width = x_LHC.shape[-1]
    half = width // 2
    out = np.empty_like(x_LHC)
    for i in range(half):
        angle = positions_L.astype(np.float64) * theta ** (-2.0 * i / width)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x_LHC[..., i], x_LHC[..., i + half]
        out[..., i] = a * cos - b * sin
        out[..., i + half] = b * cos + a * sin
    return out


def forward_document(weights, options, ids_L, positions_L):
    """logits_LV of one document."""
    get = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    width = options.head_dim or options.hidden_size // options.num_attention_heads
    length = len(ids_L)

    def linear(x, name):
        y = x @ get[name + ".weight"].T
        return y + get[name + ".bias"] if name + ".bias" in get else y

    x = get["model.embed_tokens.weight"][ids_L]
    for layer in range(options.num_hidden_layers):
        p = f"model.layers.{layer}."
        normed = rms_norm(x, get[p + "input_layernorm.weight"], options.rms_norm_eps)
        query = linear(normed, p + "self_attn.q_proj").reshape(length, options.num_attention_heads, width)
        key = linear(normed, p + "self_attn.k_proj").reshape(length, options.num_key_value_heads, width)
        value = linear(normed, p + "self_attn.v_proj").reshape(length, options.num_key_value_heads, width)
        query, key = rotate(query, positions_L, options.rope_theta), rotate(key, positions_L, options.rope_theta)
        mixed = np.zeros((length, options.num_attention_heads, width))
        for head in range(options.num_attention_heads):
            group = head // (options.num_attention_heads // options.num_key_value_heads)
            for t in range(length):
                scores = key[: t + 1, group] @ query[t, head] / np.sqrt(width)
                weight = np.exp(scores - scores.max())
                mixed[t, head] = (weight / weight.sum()) @ value[: t + 1, group]
        x = x + linear(mixed.reshape(length, -1), p + "self_attn.o_proj")
        normed = rms_norm(x, get[p + "post_attention_layernorm.weight"], options.rms_norm_eps)
        gate = linear(normed, p + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(normed, p + "mlp.up_proj"), p + "mlp.down_proj")
    x = rms_norm(x, get["model.norm.weight"], options.rms_norm_eps)
    return x @ get["model.embed_tokens.weight" if options.tie_word_embeddings else "lm_head.weight"].T
