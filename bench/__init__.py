"""Measures the service and its alternatives side by side: `make bench`; see README.md. Imports nothing of `web`."""
