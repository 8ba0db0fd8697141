"""The shape of a dense openPangu (Llama-like) model, and of adapters to it."""

from dataclasses import dataclass, field

from mindspore_impl.schema import option


@dataclass
class ModelOptions:
    """Sizes and flags of one model. The published 1B and 7B are conf/model/pangu_1b.yaml and pangu_7b.yaml."""

    vocab_size: int = 0  # 0: the tokenizer's size
    hidden_size: int = 96
    intermediate_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int | None = None  # null: hidden_size / num_attention_heads
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    qkv_bias: bool = True  # bias on the q, k and v projections
    o_bias: bool = True  # bias on the o projection
    tie_word_embeddings: bool = True  # lm_head shares the embedding matrix
    initializer_range: float = 0.02
    recompute: bool = option(False, fingerprint=False)  # recompute each layer's activations in the backward pass


@dataclass
class LoraOptions:
    """Low-rank adapters that are trained in place of the weights: W + (lora_alpha / r) * B @ A."""

    r: int = option(8, low=1)  # for full fine-tuning set lora=null
    lora_alpha: float = option(16.0, above=0)
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
