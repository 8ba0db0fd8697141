"""What an export package holds."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from mindspore_impl.schema import option

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS = get_args(Precision)


@dataclass
class ExportOptions:
    """The graphs of a package and what its parity report compares."""

    precision: Precision = "fp16"  # int8: 8-bit weights of the layers, the rest as in fp16
    cache_length: int = option(1024, low=1)  # tokens of prompt and answer together
    buckets: list[int] = option(default_factory=lambda: [64, 256], low=1)  # prompt lengths, one prefill graph each
    target_soc: str = "Ascend310B"  # the board's processor; written into the manifest, nothing depends on it here
    compare: list[Precision] = field(default_factory=lambda: ["fp32", "fp16", "int8"])  # in the parity report
    parity_prompts: int = option(4, low=1)  # prompts that are decoded with the package and with the training graph
    parity_tokens: int = option(64, low=1)  # tokens after each of them
