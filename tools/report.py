"""Write a run's report again; see --help."""

from _run import run

if __name__ == "__main__":
    run("report")
