"""What a user would write without the service: Flask, and encode in the view. Served by Gunicorn; see `servers.py`."""

import os

import torch
from flask import Flask, jsonify, request
from sentence_transformers import SentenceTransformer

torch.set_num_threads(int(os.environ["TORCH_THREADS"]))
model = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu", local_files_only=True)
app = Flask(__name__)


@app.post("/v1/embeddings")
def embeddings():
    """The vectors of the texts."""
    vectors = model.encode(request.get_json()["input"], show_progress_bar=False)
    return jsonify(data=[{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)])


@app.get("/health")
def health():
    """Which worker this is, so that the bench knows when all have loaded."""
    return str(os.getpid())
