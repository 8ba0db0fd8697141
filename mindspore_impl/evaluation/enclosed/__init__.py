"""Running a program that nobody has read: kernel layers around it, and tests that are judged outside of it.

Standard library only: `supervisor.py` runs under `python -I -S -B`, without the packages of the environment.
"""
