"""`python -m bench.device`: checks and measures a GPU on a machine without network. See bench/README.md."""

# The name under which the model is served.
MODEL = "check"
