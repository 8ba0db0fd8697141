"""Choose the records worth training on; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindspore_impl.cli import select_data  # noqa: E402

if __name__ == "__main__":
    sys.exit(select_data())
