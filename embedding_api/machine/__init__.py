"""What the machine gives: cores, control groups, memory before a fork, child processes, temporary files."""
