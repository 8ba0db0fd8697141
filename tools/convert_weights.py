"""Convert weights between Hugging Face folders and checkpoints; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindspore_impl.cli import convert_weights  # noqa: E402

if __name__ == "__main__":
    sys.exit(convert_weights())
