"""The training objective: a float64 oracle, and the same mathematics as MindSpore Cells."""
