# Sourced by quickstart.sh and test.sh: makes .venv and installs what is missing. Sets PYTHON.
# usage: prepare_environment EXTRA     (EXTRA: "" for the core, or an extra of setup.py)
prepare_environment() {
  local extra="$1" stamp wanted base
  base="$(command -v python3.11 || command -v python3.10 || command -v python3 || true)"
  # A half-made .venv has a Python but no pip.
  if ! .venv/bin/python -c 'import pip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))' 2>/dev/null; then
    if [ -z "$base" ] || ! "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))'; then
      echo "error: Python 3.10 or 3.11 is needed; install python3.11 and run this again" >&2
      return 2
    fi
    if [ -e .venv ]; then
      echo ".venv lacks pip or is not Python 3.10 or 3.11; it is made again"
    fi
    rm -rf .venv
    if ! "$base" -m venv .venv; then
      rm -rf .venv
      echo "error: $base -m venv failed; install its venv module (on Debian and Ubuntu: python3.11-venv)" >&2
      return 2
    fi
  fi
  PYTHON="$PWD/.venv/bin/python"
  stamp=".venv/.installed-${extra:-core}"
  wanted="$(sha256sum setup.py | cut -d' ' -f1)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (about 3.5 GB, one to three minutes) ..."
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}" || {
      echo "error: pip could not install the packages of setup.py; is a PyPI mirror configured?" >&2
      return 2
    }
    echo "$wanted" > "$stamp"
  fi
}

# For the commands that come next: they need the environment that the scripts use.
say_how_to_activate() {
  if [ "${VIRTUAL_ENV:-}" != "$PWD/.venv" ]; then
    echo "to use the other commands in this shell, activate the environment: . .venv/bin/activate"
  fi
}
