"""Run untrusted Python programs against their tests, inside every isolation layer that this machine offers.

The program and its tests run in two processes: the tests call into the program, and the verdict comes from their side.
Programs are started by `run.py`. `supervisor.py` runs by path under `python -I -S -B`, without the packages of the
environment: it and the modules that it uses import the standard library alone.
"""
