"""Download a model from the Hugging Face hub into its cache. A program of its own: a download starts threads."""
