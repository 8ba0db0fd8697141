"""Choose the records worth training on; see --help."""

from _run import run

if __name__ == "__main__":
    run("select_data")
