"""The application that a user would write without the service: encode in a Flask view. `field.py` runs it."""

import os

import torch
from flask import Flask, jsonify, request
from sentence_transformers import SentenceTransformer

torch.set_num_threads(int(os.environ["TORCH_THREADS"]))
model = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu", local_files_only=True)
app = Flask(__name__)


@app.post("/v1/embeddings")
def embeddings():
    """Return the vectors of the texts."""
    vectors = model.encode(request.get_json()["input"], show_progress_bar=False)
    return jsonify(data=[{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)])


@app.get("/health")
def health():
    """Return the worker's process id, so that the bench knows when all workers have loaded the model."""
    return str(os.getpid())
