"""The engine room: texts in, vectors out. Knows nothing of Flask; torch stays in `backends/`."""
