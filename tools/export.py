"""Export a model to a MindIR package; see --help."""

from _run import run

if __name__ == "__main__":
    run("export")
