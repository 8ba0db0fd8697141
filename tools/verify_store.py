"""Check a teacher store; see --help."""

from _run import run

if __name__ == "__main__":
    run("verify_store")
