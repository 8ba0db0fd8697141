"""The curriculum: which stages run, in what order, from what, and which need not run again."""
