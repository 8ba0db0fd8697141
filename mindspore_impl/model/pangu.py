"""The dense openPangu causal language model (Llama-like: RMSNorm, rotary positions, grouped heads, SwiGLU).

Names and shapes of parameters (float32) are those of the published files; activations are `runtime.compute_dtype()`,
one row a token. Legend: B batch, L sequence, N = B*L tokens, D hidden, F feed-forward width, H query heads, G key/value
heads, C head dimension, V vocabulary, I/O in and out features.
"""

import zlib

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.ops.attention import make_attention
from mindspore_impl.ops.linear import make_product
from mindspore_impl.ops.rms_norm import make_rms_norm
from mindspore_impl.ops.rotary import make_rotary, rotary_table
from mindspore_impl.ops.swiglu import make_swiglu
from mindspore_impl.schema import check_ranges


def head_dim(options: ModelOptions) -> int:
    """The width of one head: `head_dim`, or hidden_size / num_attention_heads where it is null."""
    return options.head_dim or options.hidden_size // options.num_attention_heads


def head_sizes(options: ModelOptions) -> tuple[int, int, int]:
    """-> (query heads H, key and value heads G, width C of one head)."""
    return options.num_attention_heads, options.num_key_value_heads, head_dim(options)


def parameter_shapes(options: ModelOptions) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the network. No Cell is built."""
    hidden, inner = options.hidden_size, options.intermediate_size
    heads, kv_heads, width = head_sizes(options)
    queries, keys = heads * width, kv_heads * width
    projections = {
        "q_proj": (queries, hidden, options.qkv_bias),
        "k_proj": (keys, hidden, options.qkv_bias),
        "v_proj": (keys, hidden, options.qkv_bias),
        "o_proj": (hidden, queries, options.o_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (options.vocab_size, hidden)}
    for layer in range(options.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for name, (rows, columns, bias) in projections.items():
            shapes[f"{prefix}self_attn.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}self_attn.{name}.bias"] = (rows,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not options.tie_word_embeddings:
        shapes["lm_head.weight"] = (options.vocab_size, hidden)
    return shapes


def parameter_count(options: ModelOptions) -> int:
    """The number of parameters: 1,155,912,192 for the published 1B, 8,030,887,936 for the 7B."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(options).values())


def check_options(options: ModelOptions, where: str) -> None:
    """Validate the sizes of a model. `where` is the config path, e.g. "models.student". Raises UserError."""
    check_ranges(options, where)
    if options.vocab_size == 0:
        raise UserError(f"{where}.vocab_size: must be positive, found 0")
    heads, kv_heads, hidden = options.num_attention_heads, options.num_key_value_heads, options.hidden_size
    if heads % kv_heads:
        divisors = [count for count in range(1, heads + 1) if heads % count == 0]
        nearest = min(divisors, key=lambda count: (abs(count - kv_heads), count))
        raise UserError(f"{where}.num_key_value_heads: {kv_heads} does not divide {heads}; nearest: {nearest}")
    if options.head_dim is None and hidden % heads:
        lower = max(hidden // heads, 1) * heads
        raise UserError(f"{where}.hidden_size: {hidden} is no multiple of {heads}; nearest: {lower} or {lower + heads}")
    if head_dim(options) % 2:
        raise UserError(f"{where}.head_dim: {head_dim(options)} is odd; nearest: {head_dim(options) + 1}")


def initial_value(name: str, shape: tuple[int, ...], options: ModelOptions, seed: int) -> np.ndarray:
    """The float32 value a parameter starts from; a function of seed and name alone.

    Norm weights 1, biases 0, the rest normal(0, initializer_range). o_proj and down_proj, which write into the residual
    stream twice a layer, are divided by sqrt(2 * num_hidden_layers): its variance does not grow with depth (GPT-2).
    """
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    scale = options.initializer_range
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        scale /= (2 * options.num_hidden_layers) ** 0.5
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return generator.standard_normal(shape, np.float32) * np.float32(scale)


class _Weight(nn.Cell):
    """A Cell that holds one Parameter `weight`."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros(shape, np.float32)), name="weight")


class Linear(nn.Cell):
    """x_NI -> x_NI @ weight_OI^T (+ bias_O), in the compute dtype; the parameters are float32."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((outputs, inputs), np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros((outputs,), np.float32)), name="bias") if bias else None
        self.has_bias = bias
        self.dtype = runtime.compute_dtype()
        self.product = make_product()
        self.bias_add = ops.BiasAdd()

    def construct(self, x_NI):
        y_NO = self.product(x_NI, ops.cast(self.weight, self.dtype))
        if self.has_bias:
            y_NO = self.bias_add(y_NO, ops.cast(self.bias, self.dtype))
        return y_NO


class RMSNorm(nn.Cell):
    """x_ND -> x_ND normalised and scaled by `weight`."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((size,), np.float32)), name="weight")
        self.operator = make_rms_norm(size, eps)

    def construct(self, x_ND):
        return self.operator(x_ND, self.weight)


class Attention(nn.Cell):
    """Projections, rotation and mixing."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.heads, self.kv_heads, self.width = head_sizes(options)
        queries, keys = self.heads * self.width, self.kv_heads * self.width
        self.q_proj = Linear(options.hidden_size, queries, options.qkv_bias)
        self.k_proj = Linear(options.hidden_size, keys, options.qkv_bias)
        self.v_proj = Linear(options.hidden_size, keys, options.qkv_bias)
        self.o_proj = Linear(queries, options.hidden_size, options.o_bias)
        self.rotate = make_rotary(self.heads, self.kv_heads, self.width)[1]
        self.attend = make_attention(self.heads, self.kv_heads, self.width)[1]
        self.reshape = ops.Reshape()

    def project(self, x_ND, tables):
        """x_ND -> rotated query_NHC and key_NGC, and value_NGC."""
        query_NHC = self.reshape(self.q_proj(x_ND), (-1, self.heads, self.width))
        key_NGC = self.reshape(self.k_proj(x_ND), (-1, self.kv_heads, self.width))
        value_NGC = self.reshape(self.v_proj(x_ND), (-1, self.kv_heads, self.width))
        query_NHC, key_NGC = self.rotate(query_NHC, key_NGC, tables)
        return query_NHC, key_NGC, value_NGC


class FeedForward(nn.Cell):
    """x_ND -> down(silu(gate(x)) * up(x))."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.gate_proj = Linear(options.hidden_size, options.intermediate_size, False)
        self.up_proj = Linear(options.hidden_size, options.intermediate_size, False)
        self.down_proj = Linear(options.intermediate_size, options.hidden_size, False)
        self.activate = make_swiglu()

    def construct(self, x_ND):
        return self.down_proj(self.activate(self.gate_proj(x_ND), self.up_proj(x_ND)))


class Layer(nn.Cell):
    """One pre-norm transformer block, in two halves around the mixing, which decoding does in its own way."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.input_layernorm = RMSNorm(options.hidden_size, options.rms_norm_eps)
        self.self_attn = Attention(options)
        self.post_attention_layernorm = RMSNorm(options.hidden_size, options.rms_norm_eps)
        self.mlp = FeedForward(options)

    def project(self, x_ND, tables):
        """x_ND -> rotated query_NHC and key_NGC, and value_NGC."""
        return self.self_attn.project(self.input_layernorm(x_ND), tables)

    def finish(self, x_ND, mixed_NI):
        """The residual stream after attention and feed-forward, from what attention mixed."""
        x_ND = x_ND + self.self_attn.o_proj(mixed_NI)
        return x_ND + self.mlp(self.post_attention_layernorm(x_ND))

    def construct(self, x_ND, tables, plan):
        query_NHC, key_NGC, value_NGC = self.project(x_ND, tables)
        return self.finish(x_ND, self.self_attn.attend(query_NHC, key_NGC, value_NGC, plan))


class PanguModel(nn.Cell):
    """Embedding, layers and final norm."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.embed_tokens = _Weight((options.vocab_size, options.hidden_size))
        self.layers = nn.CellList([Layer(options) for _ in range(options.num_hidden_layers)])
        self.norm = RMSNorm(options.hidden_size, options.rms_norm_eps)
        self.dtype = runtime.compute_dtype()
        self.gather = ops.Gather()
        heads, kv_heads, width = head_sizes(options)
        cos_PC, sin_PC = rotary_table(width, options.rope_theta, options.max_position_embeddings)
        self.cos_PC, self.sin_PC = Tensor(cos_PC), Tensor(sin_PC)
        self.spread = make_rotary(heads, kv_heads, width)[0]
        self.mask = make_attention(heads, kv_heads, width)[0]
        if options.recompute:
            for layer in self.layers:
                layer.recompute()

    def embed(self, input_ids_BL):
        """-> x_ND in the compute dtype."""
        return ops.cast(self.gather(self.embed_tokens.weight, input_ids_BL.reshape((-1,)), 0), self.dtype)

    def tables(self, position_ids_BL):
        """The rotary tables of these positions, in the operator's form."""
        position_ids_N = position_ids_BL.reshape((-1,))
        return self.spread(self.gather(self.cos_PC, position_ids_N, 0), self.gather(self.sin_PC, position_ids_N, 0))

    def construct(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        x_ND = self.embed(input_ids_BL)
        tables = self.tables(position_ids_BL)
        plan = self.mask(segment_ids_BL)
        for layer in self.layers:
            x_ND = layer(x_ND, tables, plan)
        return self.norm(x_ND)


class PanguForCausalLM(nn.Cell):
    """The causal language model; raises UserError for impossible `options`.

    Initial values depend on `seed` (default: that of the last `runtime.set_seed`) and a parameter's name alone;
    `initialise=False` leaves zeros, for weights that are loaded next.
    """

    def __init__(self, options: ModelOptions, seed: int | None = None, initialise: bool = True):
        super().__init__()
        check_options(options, "model")
        self.options = options
        self.model = PanguModel(options)
        self.tied = options.tie_word_embeddings
        if not self.tied:
            self.lm_head = _Weight((options.vocab_size, options.hidden_size))
        self.dtype = runtime.compute_dtype()
        self.matmul = ops.MatMul(transpose_b=True)
        if initialise:
            seed = (ms.get_seed() or 0) if seed is None else seed
            for parameter in self.get_parameters():
                value = initial_value(parameter.name, tuple(parameter.shape), options, seed)
                parameter.set_data(Tensor(value))

    def update_parameters_name(self, prefix="", recurse=True):
        """Keep the published names: a Cell that holds this one as an attribute would otherwise prepend its own."""

    @property
    def lm_head_weight(self) -> Parameter:
        """The [V, D] matrix that makes logits: the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.tied else self.lm_head.weight

    def hidden(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        """-> hidden_BLD after the final norm, in the compute dtype. Inputs int32, padding in segment 0."""
        hidden_ND = self.model(input_ids_BL, position_ids_BL, segment_ids_BL)
        return hidden_ND.reshape(input_ids_BL.shape + (-1,))

    def logits(self, hidden_ND):
        """hidden_ND -> logits_NV float32."""
        weight_VD = self.model.embed_tokens.weight if self.tied else self.lm_head.weight
        return ops.cast(self.matmul(hidden_ND, ops.cast(weight_VD, self.dtype)), mstype.float32)

    def construct(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        hidden_ND = self.model(input_ids_BL, position_ids_BL, segment_ids_BL)
        return self.logits(hidden_ND).reshape(input_ids_BL.shape + (-1,))
