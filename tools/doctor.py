"""Say what this machine has and lacks; see --help."""

from _run import run

if __name__ == "__main__":
    run("doctor")
