"""The model that the check of a device makes shows what it is made for, in each precision."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from bench.device import bounds, model
from bench.texts import Shelf, library_words
from embedding_api.engine.backends import torch_model

SHELF = Shelf()
TEXTS = [SHELF.text(kind) for kind in ("short", "passage", "long", "short")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the model, and the CPU's vectors."""
    folder = tmp_path_factory.mktemp("device") / "model"
    reference = model.make(folder, library_words()).encode(TEXTS, show_progress_bar=False)
    return folder, reference


def test_it_has_the_size_of_minilm_and_tells_texts_apart(made):
    folder, reference = made
    encoder = SentenceTransformer(str(folder), device="cpu")
    # all-MiniLM-L6-v2 has 22.7 million.
    assert 22e6 < sum(parameter.numel() for parameter in encoder.parameters()) < 23e6
    assert encoder.max_seq_length == 256
    assert (reference @ reference.T)[np.triu_indices(len(TEXTS), 1)].max() < 0.995
    ids = encoder.tokenizer(TEXTS[1])["input_ids"]
    assert encoder.tokenizer.unk_token_id not in ids
    assert len(ids) > len(TEXTS[1].split())


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_each_precision_is_within_its_bound_on_the_cpu(made, precision):
    folder, reference = made
    routes = torch_model.load(
        folder, device="cpu", precision=precision, trust_remote_code=False, allow_pickle=False
    ).routes
    reading = routes[None].reader.read(TEXTS)
    vectors = routes[None].backend.compute([tokens.ids for tokens in reading.tokens], 0).values
    assert bounds.broken(bounds.compare(reference, vectors, precision), vectors) == []


def test_tf32_breaks_the_bound_of_float32(made):
    folder, reference = made
    rounding = SentenceTransformer(str(folder), device="cpu")
    for module in rounding.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = tf32(module.weight.data)
            module.register_forward_pre_hook(lambda _, arguments: (tf32(arguments[0]),))
    vectors = rounding.encode(TEXTS, show_progress_bar=False)
    compared = bounds.compare(reference, vectors, "float32")
    assert compared["value"] > 5 * compared["bound"]
    assert len(bounds.broken(compared, vectors)) == 1


def tf32(values: torch.Tensor) -> torch.Tensor:
    """Return float32 values rounded to 10 bits after the first, as TF32 rounds what it multiplies."""
    bits = values.contiguous().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32)
