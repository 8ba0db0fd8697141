"""Kill runs at random moments; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindspore_impl.cli import chaos  # noqa: E402

if __name__ == "__main__":
    sys.exit(chaos())
