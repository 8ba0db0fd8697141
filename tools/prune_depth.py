"""Keep some of a model's layers; see --help."""

from _run import run

if __name__ == "__main__":
    run("prune_depth")
