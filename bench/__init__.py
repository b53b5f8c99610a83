"""Measures the service and what else there is, side by side: `make bench`; see README.md. Knows nothing of `web`."""
