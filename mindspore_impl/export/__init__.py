"""Verified packages of MindIR graphs for an edge board, and a session that runs one."""
