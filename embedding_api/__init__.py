"""Sentence embeddings over HTTP: a web room that speaks JSON, an engine room that turns texts into vectors.

`app.create_app` joins the two. This package imports nothing heavy by itself.
"""

__version__ = "0.1.0"
