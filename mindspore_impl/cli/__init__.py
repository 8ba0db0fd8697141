"""The commands, one file each; tools/*.py and the console scripts call their `main`."""
