"""The machine: cores, control groups, memory before a fork, child processes, temporary files."""
