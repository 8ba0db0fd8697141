"""A model small enough to compile in seconds, and a tokenizer for it."""

from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.text.tokenizer import train_tokenizer


def small_model(vocab_size: int, seed: int = 1) -> PanguForCausalLM:
    """One layer of 16 channels, with weights large enough to give peaked distributions."""
    options = ModelOptions(vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    options.num_key_value_heads, options.initializer_range = 1, 0.3
    return PanguForCausalLM(options, seed=seed)


def small_tokenizer(path):
    """A tokenizer of 96 ids for short list programs."""
    texts = [f"list {a} {b} apply sort reverse answer {a}" for a in "abcdef" for b in "abcdef"]
    return train_tokenizer(texts, path, 96, 1.0)
