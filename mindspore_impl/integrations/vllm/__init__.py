"""Teachers and students that run elsewhere: what a vLLM (or vLLM-Ascend) server or script says, in our files."""
