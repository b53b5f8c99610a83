"""What `SentenceTransformer.encode` gives: reads texts from standard input as JSON, answers their vectors as JSON.

A program of its own, so that the bench itself stays small and imports no torch.
"""

import json
import sys

import transformers
from sentence_transformers import SentenceTransformer

# Whatever else is printed must not get between the answers.
answers, sys.stdout = sys.stdout, sys.stderr

transformers.utils.logging.disable_progress_bar()
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
vectors = [model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in json.load(sys.stdin)]
json.dump([vector.tolist() for vector in vectors], answers)
