"""Convert weights between Hugging Face folders and checkpoints; see --help."""

from _run import run

if __name__ == "__main__":
    run("convert_weights")
