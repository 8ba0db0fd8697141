"""Query teachers and students on a vLLM (or vLLM-Ascend) server, and import their answers."""
