"""Options of text generation."""

from dataclasses import dataclass

from mindspore_impl.schema import option


@dataclass
class SamplingOptions:
    """Decoding settings. `temperature: 0` is greedy."""

    temperature: float = option(1.0, low=0)  # of the softmax; 0: greedy
    top_p: float = option(1.0, above=0, high=1)  # sample from the smallest set of ids with this mass
    top_k: int = option(0, low=0)  # sample from this many ids; 0: no limit
    repetition_penalty: float = option(1.0, above=0)  # above 1: ids of prompt and answer so far get less likely
    stop_ids: list[int] = option(default_factory=list, low=0)  # stop too, but the answer counts as unfinished
    max_new_tokens: int = option(96, low=1)  # tokens of an answer
    batch_size: int = option(64, low=1)  # sequences decoded together
