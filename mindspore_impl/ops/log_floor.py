"""The log-probability that stands for zero mass, in operators and stored arrays. Imports no MindSpore."""

LOG_FLOOR = -1e4  # finite, exact in float16, and exp() of it is 0
