"""Examine the machine: what it has, what is missing, and the remedy."""
