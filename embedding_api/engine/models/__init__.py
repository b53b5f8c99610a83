"""Models: where their files come from, what the files say, which backend serves them. Nothing here imports torch."""
