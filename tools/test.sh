#!/usr/bin/env bash
# The tests: bash tools/test.sh [--all [--resume]] [--install-only] [pytest arguments]
#   --all           also the slow tests (mutants, a built wheel, and what takes minutes or needs PyTorch)
#   --resume        leave out what passed in an earlier, interrupted run of this commit
#   --install-only  prepare .venv and stop
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/_environment.sh
all=0 resume=0 install_only=0 rest=()
for argument in "$@"; do
  case "$argument" in
    --all) all=1 ;;
    --resume) resume=1 ;;
    --install-only) install_only=1 ;;
    -h | --help) sed -n '2,5s/^# //p' tools/test.sh; exit 0 ;;
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
  mkdir -p outputs
  PYTEST_PASSED="outputs/passed-$(git rev-parse HEAD).txt"
  if [ "$resume" = 0 ]; then rm -f "$PYTEST_PASSED"; fi
  export PYTEST_PASSED
else
  rest=(-m "not slow" "${rest[@]}")
fi
code=0
"$PYTHON" -m pytest -n 2 --dist loadfile "${rest[@]}" || code=$?
if [ "$code" = 5 ] && [ "$resume" = 1 ] && [ -s "${PYTEST_PASSED:-}" ]; then  # pytest had nothing to run
  echo "nothing is left: all of this has passed at this commit"
  code=0
fi
exit "$code"
