"""Ask a teacher or student on a server, and import its answers; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindspore_impl.cli import query_teacher  # noqa: E402

if __name__ == "__main__":
    sys.exit(query_teacher())
