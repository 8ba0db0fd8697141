#!/usr/bin/env bash
# The tests: bash tools/test.sh [--all] [--install-only] [pytest arguments]
#   --all           also the slow tests (mutants, a built wheel, and what takes minutes or needs PyTorch)
#   --install-only  prepare .venv and stop
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/_environment.sh
all=0 install_only=0 rest=()
for argument in "$@"; do
  case "$argument" in
    --all) all=1 ;;
    --install-only) install_only=1 ;;
    -h | --help) sed -n '2,4s/^# //p' tools/test.sh; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
if [ "$all" = 1 ]; then prepare_environment dev; else prepare_environment test; fi
if [ "$install_only" = 1 ]; then
  say_how_to_activate
  exit 0
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ "$all" = 1 ]; then
  exec "$PYTHON" -m pytest "${rest[@]}"
fi
exec "$PYTHON" -m pytest -m "not slow" -n 2 --dist loadfile "${rest[@]}"
