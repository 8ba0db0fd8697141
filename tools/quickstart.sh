#!/usr/bin/env bash
# The whole curriculum on the bundled task: bash tools/quickstart.sh [key=value ...]
# Writes outputs/quickstart/{report.html,metrics.json}; run again, it continues or does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/_environment.sh
prepare_environment ""
"$PYTHON" tools/train.py experiment=quickstart runtime.threads=2 "$@"
say_how_to_activate
