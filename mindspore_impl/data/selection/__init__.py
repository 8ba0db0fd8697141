"""Which records of a file are worth training on: a recipe of steps over a stream of records, and a report of each."""
