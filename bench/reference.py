"""What a user would write without the service. Reads requests from standard input and answers, a line of JSON each."""

import json
import sys
import time

import transformers
from sentence_transformers import SentenceTransformer

# Whatever else is printed must not get between the answers.
answers, sys.stdout = sys.stdout, sys.stderr

transformers.utils.logging.disable_progress_bar()
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
prompt = model.prompts.get(model.default_prompt_name)
for line in sys.stdin:
    requests = json.loads(line)
    latencies_s = []
    started = time.perf_counter()
    for request in requests:
        begun = time.perf_counter()
        model.encode(request, show_progress_bar=False)
        latencies_s.append(time.perf_counter() - begun)
    elapsed_s = time.perf_counter() - started
    n_tokens = sum(int(model.preprocess(request, prompt=prompt)["attention_mask"].sum()) for request in requests)
    print(json.dumps([elapsed_s, latencies_s, n_tokens]), file=answers, flush=True)
