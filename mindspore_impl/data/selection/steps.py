"""All steps by the name that a recipe gives them. A new step is one line here."""

from mindspore_impl.data.selection import options, rules
from mindspore_impl.data.selection.stream import Step

STEPS: dict[str, Step] = {
    "length": Step(options.LengthOptions, check=rules.length, files=rules.tokenizer_files),
}
