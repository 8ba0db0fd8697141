"""From a checkpoint to a verified package of MindIR graphs for an edge board, and a session that runs one."""
