"""What decides results beside a stage's options: the content of data sets and of the tokenizer."""

import dataclasses
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.curriculum.stages.base import Shared
from mindspore_impl.curriculum.stages.inputs import file_hash

CODE_FORMAT = 1  # raise it when a change of code changes the results of equal options


def set_content(shared: Shared, name: str) -> dict:
    """What decides the records of the data set `name`: its options, with the hash of its file in place of the path."""
    content = dataclasses.asdict(shared.data.sets[name])
    if "seed" in content and content["seed"] is None:
        content["seed"] = shared.seed
    content.pop("stage", None)  # an input of the stage that reads the set, which counts by its fingerprint
    if content.get("path"):
        # The file's name is part of record ids, which seed the sampling of rollouts.
        path = Path(content["path"])
        content["path"] = (path.name, file_hash(path))
    return content


def tokenizer_fingerprint(shared: Shared) -> str:
    """Hash of the tokenizer file and its template; of the options and texts where the run trains its own."""
    options = shared.tokenizer
    if options.path is not None:
        return files.sha256_json([file_hash(Path(options.path)), options.template])
    sets = {name: set_content(shared, name) for name in options.train_on}
    return files.sha256_json({"format": CODE_FORMAT, "options": dataclasses.asdict(options), "sets": sets})
