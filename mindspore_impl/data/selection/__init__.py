"""Data selection: a recipe of steps over a stream of records, with a report of what each step drops."""
