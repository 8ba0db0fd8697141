"""The log of no mass, for operators and stored arrays alike. Free of MindSpore, so that data rooms can use it."""

LOG_FLOOR = -1e4  # finite, exact in float16, and exp() of it is 0
