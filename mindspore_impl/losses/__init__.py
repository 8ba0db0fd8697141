"""The objective: a float64 oracle, and the same mathematics as MindSpore cells."""
