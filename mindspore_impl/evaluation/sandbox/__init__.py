"""Run untrusted Python programs against their tests, inside every isolation layer that this machine offers.

`run.py` starts `supervisor.py` under `python -I -S -B`; the modules that it uses import the standard library alone.
"""
