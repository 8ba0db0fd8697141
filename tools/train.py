"""Run a curriculum; see --help."""

from _run import run

if __name__ == "__main__":
    run("train")
