"""LoRA: low-rank pairs beside chosen linear layers of a model whose own parameters are frozen (`adapter_file.py`).

Legend: N tokens, I/O in and out features, R rank.
"""

import dataclasses
import zlib

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_impl import runtime
from mindspore_impl.model.adapter_file import adapter_names, check_lora, scale_of
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.model.pangu import Linear, PanguForCausalLM


class LoraLinear(nn.Cell):
    """x_NI -> linear(x_NI) + (lora_alpha / r) * x_NI @ A_RI^T @ B_OR^T, in the compute dtype; A and B are float32.

    A starts uniform within 1 / sqrt(I) as in PEFT, a function of `seed` and its name; B at zero.
    """

    def __init__(self, linear: Linear, options: LoraOptions, seed: int):
        super().__init__(auto_prefix=False)
        self.linear = linear
        outputs, inputs = linear.weight.shape
        name_a, name_b = adapter_names(linear.weight.name)
        generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name_a.encode())]))
        a_RI = generator.uniform(-1, 1, (options.r, inputs)).astype(np.float32) / np.float32(inputs**0.5)
        self.lora_a = Parameter(Tensor(a_RI), name=name_a)
        self.lora_b = Parameter(Tensor(np.zeros((outputs, options.r), np.float32)), name=name_b)
        self.scale = scale_of(options)
        self.dtype = runtime.compute_dtype()
        self.matmul = ops.MatMul(transpose_b=True)

    def update_parameters_name(self, prefix="", recurse=True):
        """Keep all names: those of the linear layer are complete already, those of the pair are PEFT's."""

    def construct(self, x_NI):
        low_NR = self.matmul(x_NI, ops.cast(self.lora_a, self.dtype))
        return self.linear(x_NI) + self.matmul(low_NR, ops.cast(self.lora_b, self.dtype)) * self.scale


def with_adapters(options: ModelOptions, lora: LoraOptions, seed: int) -> PanguForCausalLM:
    """A model whose only trainable parameters are the new pairs of `lora`; its own are zero until they are loaded.

    Raises UserError for options without meaning.
    """
    check_lora(lora, "lora")
    # Recomputation is asked for once, when all cells are there.
    model = PanguForCausalLM(dataclasses.replace(options, recompute=False), initialise=False)
    model.options = options
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for target in lora.target_modules:
                linear = getattr(part, target, None)
                if linear is not None:
                    setattr(part, target, LoraLinear(linear, lora, seed))
        if options.recompute:
            layer.recompute()
    return model
