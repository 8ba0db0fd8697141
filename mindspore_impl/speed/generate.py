"""Generation at the size of SmolLM2-135M with random weights: ours against transformers' Llama on PyTorch, eager, fp32.

Three cases: prefill of 512 tokens; decode of one sequence after them, a token a call, logits read on the host as
sampling does; decode of 8 and of 32 sequences after 128 tokens each. Both hold the same weights, use the same number of
threads, and take turns. Our cache is as long as the engine makes it for NEW more tokens; theirs grows.
"""

from types import SimpleNamespace

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.generation.engine import Engine
from mindspore_impl.model.hf_config import config_of
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM, initial_value, parameter_shapes
from mindspore_impl.speed.common import Row, contest

OPTIONS = ModelOptions(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64, rope_theta=1e5, max_position_embeddings=8192, qkv_bias=False, o_bias=False,
)  # fmt: skip
CASE = f"{OPTIONS.num_hidden_layers} x {OPTIONS.hidden_size}, vocabulary {OPTIONS.vocab_size}, fp32"
PROMPT, NEW, STEPS = 512, 96, 16  # a decode run takes STEPS of the NEW tokens there is room for
BATCHES, BATCH_PROMPT = (8, 32), 128
PEER = "transformers Llama, torch eager"


def rows(rounds: int = 7, threads: int = 2) -> list[Row]:
    """Seconds of a prefill, milliseconds a token of one sequence, and tokens a second of several."""
    import torch

    runtime.setup(runtime.RuntimeOptions(threads=threads), seed=0)
    torch.set_num_threads(threads)
    sides = {"ours": Ours(OPTIONS), PEER: Theirs(OPTIONS)}
    one = prompts(1, PROMPT, OPTIONS)
    check_equal(*sides.values(), one)
    runs = {name: lambda side=side: side.prefill(one) for name, side in sides.items()}
    found = contest(f"{PROMPT} tokens, {CASE}", "prefill", "s", runs, rounds)
    runs = {name: lambda side=side: side.decode(STEPS) for name, side in sides.items()}
    found += contest(f"batch 1 at {PROMPT}, {CASE}", "decode", "ms a token", runs, rounds, lambda s: 1e3 * s / STEPS)
    for batch in BATCHES:
        for side in sides.values():
            side.prefill(prompts(batch, BATCH_PROMPT, OPTIONS))
        case = f"batch {batch} at {BATCH_PROMPT}, {CASE}"
        found += contest(case, "decode", "tokens/s", runs, rounds, lambda s, b=batch: b * STEPS / s, higher=True)
    return found


def prompts(batch: int, length: int, options: ModelOptions) -> np.ndarray:
    """ids_BL, int32."""
    return np.random.default_rng(0).integers(1, options.vocab_size, (batch, length)).astype(np.int32)


def tokenizer(options: ModelOptions) -> SimpleNamespace:
    """What the engine asks of a tokenizer."""
    return SimpleNamespace(vocab_size=options.vocab_size, bos_id=None, eos_id=2, pad_id=0)


class Ours:
    """Our model behind the engine's own decoder. `prefill` starts again; `decode` repeats the steps behind it."""

    def __init__(self, options: ModelOptions):
        model = PanguForCausalLM(options, seed=0)
        model.set_train(False)
        self.engine = Engine(model, tokenizer(options))

    def prefill(self, ids_BL: np.ndarray) -> np.ndarray:
        """The logits_BV after the prompts."""
        self.decoder = self.engine.decoder(self.engine.slots_for(ids_BL.shape[1] + NEW))
        self.length_B = np.full(len(ids_BL), ids_BL.shape[1], np.int32)
        return self.decoder.prefill(ids_BL, self.length_B)

    def decode(self, steps: int) -> np.ndarray:
        """Greedy steps from token 1 on; the last logits_BV. Later calls write the same cache slots again."""
        token_B = np.ones(len(self.length_B), np.int32)
        for step in range(steps):
            logits_BV = self.decoder.decode(token_B, self.length_B + np.int32(step))
            token_B = logits_BV.argmax(axis=1).astype(np.int32)
        return logits_BV


class Theirs:
    """transformers' Llama with the same weights and its own growing cache, cut back before each call."""

    def __init__(self, options: ModelOptions):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        content = config_of(options, "llama", {})
        config = LlamaConfig(**{key: value for key, value in content.items() if key != "architectures"})
        config._attn_implementation = "sdpa"
        self.model = LlamaForCausalLM(config)
        shapes = parameter_shapes(options)
        state = {n: torch.from_numpy(initial_value(n, shape, options, 0)) for n, shape in shapes.items()}
        self.model.load_state_dict(state, strict=False)
        self.model.tie_weights()
        self.model.eval()

    def _step(self, token_BL, **more) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out = self.model(torch.from_numpy(token_BL.astype(np.int64)), use_cache=True, logits_to_keep=1, **more)
        self.cache = out.past_key_values
        return out.logits[:, -1].numpy()

    def prefill(self, ids_BL: np.ndarray) -> np.ndarray:
        """The logits_BV after the prompts."""
        self.batch, self.length = ids_BL.shape
        return self._step(ids_BL)

    def decode(self, steps: int) -> np.ndarray:
        """Greedy steps from token 1 on; the last logits_BV."""
        self.cache.crop(self.length)
        token_B1 = np.ones((self.batch, 1))
        for _ in range(steps):
            logits_BV = self._step(token_B1, past_key_values=self.cache)
            token_B1 = logits_BV.argmax(axis=1)[:, None]
        return logits_BV


def check_equal(ours: Ours, theirs: Theirs, ids_BL: np.ndarray) -> None:
    """Refuse to compare speeds of models that do not compute the same. Raises ValueError."""
    for run in (lambda side: side.prefill(ids_BL), lambda side: side.decode(4)):
        if not np.allclose(run(ours), run(theirs), atol=1e-4):
            raise ValueError("the two models give different logits: the comparison would not be fair")
