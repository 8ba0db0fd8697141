"""The registry of steps by the name that a recipe uses. A new step is one function, its options and a line here."""

from mindspore_impl.data.options import KeepOptions
from mindspore_impl.data.selection import duplicates, judged, mixture, options, rules
from mindspore_impl.data.selection.stream import Step

STEPS: dict[str, Step] = {
    "length": Step(options.LengthOptions, check=rules.length, files=rules.tokenizer_files),
    "language": Step(options.LanguageOptions, check=rules.language),
    "repetition": Step(options.RepetitionOptions, check=rules.repetition),
    "broken_unicode": Step(options.BrokenUnicodeOptions, check=rules.broken_unicode),
    "missing_answer": Step(options.MissingAnswerOptions, check=rules.missing_answer),
    "refusal": Step(options.RefusalOptions, check=rules.refusal),
    "code_fences": Step(options.CodeFencesOptions, check=rules.code_fences),
    "compression": Step(options.CompressionOptions, check=rules.compression),
    "exact_duplicates": Step(options.ExactDuplicatesOptions, check=duplicates.exact),
    "near_duplicates": Step(options.NearDuplicatesOptions, check=duplicates.near),
    "decontaminate": Step(
        options.DecontaminateOptions, check=duplicates.decontaminate, sets=lambda options: options.against
    ),
    "verify": Step(options.VerifyOptions, check=judged.verify),
    "rejection": Step(options.RejectionOptions, stream=judged.rejection, files=judged.files_of),
    "difficulty": Step(options.DifficultyOptions, stream=judged.measure, files=judged.files_of),
    "band": Step(KeepOptions, check=judged.band),
    "mixture": Step(options.MixtureOptions, stream=mixture.mixture),
}
