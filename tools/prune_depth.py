"""Keep some of a model's layers; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindspore_impl.cli import prune_depth  # noqa: E402

if __name__ == "__main__":
    sys.exit(prune_depth())
