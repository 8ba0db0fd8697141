"""Ask a teacher or student on a server, and import its answers; see --help."""

from _run import run

if __name__ == "__main__":
    run("query_teacher")
