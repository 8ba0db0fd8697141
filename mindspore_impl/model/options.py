"""The shape of a dense openPangu (Llama-like) model, and of adapters to it."""

from dataclasses import dataclass, field

from mindspore_impl.schema import option


@dataclass
class ModelOptions:
    """Sizes and flags of one model. The published 1B and 7B are conf/model/pangu_1b.yaml and pangu_7b.yaml."""

    vocab_size: int = option(0, low=0)  # 0: the tokenizer's size
    hidden_size: int = option(96, low=1)  # width of the residual stream
    intermediate_size: int = option(256, low=1)  # width inside the MLP
    num_hidden_layers: int = option(2, low=1)  # transformer layers
    num_attention_heads: int = option(4, low=1)  # query heads
    num_key_value_heads: int = option(2, low=1)  # key and value heads; a divisor of num_attention_heads
    head_dim: int | None = option(None, low=1)  # null: hidden_size / num_attention_heads
    rope_theta: float = option(10000.0, above=0)  # base of the rotary angles
    rms_norm_eps: float = option(1e-5, above=0)  # added to the mean square in RMSNorm
    max_position_embeddings: int = option(4096, low=1)  # longest sequence, in tokens
    qkv_bias: bool = True  # bias on the q, k and v projections
    o_bias: bool = True  # bias on the o projection
    tie_word_embeddings: bool = True  # lm_head shares the embedding matrix
    initializer_range: float = option(0.02, low=0)  # standard deviation of random weights
    recompute: bool = option(False, fingerprint=False)  # recompute each layer's activations in the backward pass


@dataclass
class LoraOptions:
    """Low-rank adapters that are trained in place of the weights: W + (lora_alpha / r) * B @ A.

    They stand beside linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    """

    r: int = option(8, low=1)  # rank of the matrices A and B
    lora_alpha: float = option(16.0, above=0)  # scale of B @ A, before it is divided by r
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])  # linear layers
