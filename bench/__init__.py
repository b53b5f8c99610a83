"""Measures the service against the bare model, side by side: `make bench`. Imports nothing from `embedding_api.web`."""
