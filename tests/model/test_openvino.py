"""The OpenVINO backend: vectors equal `SentenceTransformer.encode`; the cache; a start without torch; a fork."""

import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from sentence_transformers import SentenceTransformer

from embedding_api.engine.backends import Routes, convert, openvino_backend, torch_model
from embedding_api.engine.models import conversion
from embedding_api.engine.models.checksums import Checksums
from embedding_api.engine.start import load_engine
from embedding_api.errors import ModelLoadError
from embedding_api.machine import analytics, cores, programs
from embedding_api.settings import load_settings
from tests import models
from tests.model.test_torch import DOCS, TEXTS, differences

# torch.export uses deprecated parts of torch. The service converts in a separate process, which shows no such warning.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

ROOT = Path(__file__).parents[2]
BOUND = 2e-6
# Models that the conversion refuses, and a part of the message.
REFUSED = {
    "bert_prompt_not_pooled": "leaves the prompt out",
    "bert_prompts_not_pooled": "leaves the prompt out",
    "static_embedding": "gain nothing",
    "router_with_default": "a way of their own",
    "router_prompts": "a way of their own",
    "router_mappings": "a way of their own",
    "bert_short_queries": "a way of their own",
    "routers_that_disagree": "gain nothing",
}
# Models whose texts cannot be packed: their tokens do not attend to all others, or a router precedes the Transformer.
PADDED = {"modernbert_cls", "modernbert_long_window", "decoder_last_token", "decoder_last_token_padded_right",
          "router_of_other_tasks"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def converted(source, target, **changes) -> dict:
    configured = {"quantise": False, "calibration_texts": "", "trust_remote_code": False, "allow_pickle": False}
    return convert.main(source=str(source), target=str(target), **{**configured, **changes})


def embed(routes: Routes, texts, task=None):
    """Return the vectors of texts, computed in one batch."""
    route = routes[task]
    return route.backend.compute([tokens.ids for tokens in route.reader.read(texts, route.prompt).tokens], 0).values


@pytest.mark.parametrize(
    "make", [make for make in models.SERVED if make.__name__ not in REFUSED], ids=lambda m: m.__name__
)
def test_converted_models_equal_encode_alone_and_in_any_company(make, folder, tmp_path):
    source = models.save(make, folder)
    assert converted(source, tmp_path) == {"warnings": []}
    layout = json.loads((tmp_path / "description.json").read_bytes())["layout"]["name"]
    assert layout == ("Padding" if make.__name__ in PADDED else "Packing")
    reference = SentenceTransformer(str(source), device="cpu").encode(TEXTS, show_progress_bar=False)
    loaded = openvino_backend.load(tmp_path, precision="float32").routes
    alone = np.concatenate([embed(loaded, [text]) for text in TEXTS])
    for vectors in (embed(loaded, TEXTS), alone):
        assert vectors.shape == reference.shape
        assert differences(reference, vectors).max() < BOUND
    halved = embed(openvino_backend.load(tmp_path, precision="bfloat16").routes, TEXTS)
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(halved, axis=1)
    assert ((reference * halved).sum(axis=1) / lengths).min() > 0.999


@pytest.mark.parametrize("make", [models.bert_prompts, models.bert_passage_prompt], ids=lambda m: m.__name__)
def test_prompts_come_along_with_a_converted_model(make, folder, tmp_path):
    source = models.save(make, folder)
    assert converted(source, tmp_path) == {"warnings": []}
    wanted = torch_model.load(
        source, device="cpu", precision="float32", trust_remote_code=False, allow_pickle=False
    ).routes
    routes = openvino_backend.load(tmp_path, precision="float32").routes
    assert routes.keys() == wanted.keys()
    for task, route in routes.items():
        assert (route.prompt, route.prompts) == (wanted[task].prompt, wanted[task].prompts)
        np.testing.assert_array_equal(route.reference, wanted[task].reference)
        assert differences(embed(wanted, TEXTS, task), embed(routes, TEXTS, task)).max() < BOUND


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_converted_or_gain_nothing_are_refused(name, folder, tmp_path):
    outcome = converted(models.save(getattr(models, name), folder), tmp_path)
    assert REFUSED[name] in outcome["refusal"]


def test_a_model_that_cannot_be_loaded_is_a_problem_and_no_lasting_refusal(tmp_path):
    outcome = converted(tmp_path, tmp_path)
    assert "refusal" not in outcome
    assert outcome["problem"].startswith("it cannot be loaded")


def test_threads_that_the_system_refuses_to_a_conversion_are_no_lasting_refusal(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Exception from src/inference/src/dev/plugin.cpp:54:\nResource temporarily unavailable\n")

    # By name: OpenVINO must not be imported before `convert` has blocked its analytics, which start threads.
    analytics.block()
    monkeypatch.setattr("openvino.convert_model", refuse)
    outcome = converted(models.save(models.bert_mean, folder), tmp_path)
    assert "refusal" not in outcome
    assert "Resource temporarily unavailable" in outcome["problem"]


def settings(monkeypatch, tmp_path, source, **configured):
    for name, value in {"SUPPORTED_MODELS": f"m={source}", "CACHE_DIR": str(tmp_path / "cache"), **configured}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_a_refusal_is_remembered_and_torch_serves_with_a_warning(folder, tmp_path, monkeypatch, caplog):
    configured = settings(monkeypatch, tmp_path, models.save(models.static_embedding, folder))
    for _ in range(2):
        engine = load_engine(configured)
        assert engine.models.get("m").route.backend.name == "torch"
        engine.close()
    assert caplog.text.count("is served by torch in float32") == 2
    (refusal,) = (tmp_path / "cache" / "openvino").glob("*/refusal.json")
    changed = refusal.stat().st_mtime_ns
    load_engine(configured).close()
    assert refusal.stat().st_mtime_ns == changed
    with pytest.raises(ModelLoadError, match=r"cannot be served by openvino: .* gain nothing; set BACKEND=auto"):
        load_engine(settings(monkeypatch, tmp_path, models.save(models.static_embedding, folder), BACKEND="openvino"))


def test_two_starts_at_once_convert_once_and_a_damaged_entry_is_made_again(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    source = models.save(models.bert_mean, folder)
    configured = settings(monkeypatch, tmp_path, source)
    with ThreadPoolExecutor(2) as starts:
        first, second = starts.map(
            lambda _: conversion.converted(source, configured, Checksums(), trust_remote_code=False, model="m"),
            range(2),
        )
    assert first == second
    assert caplog.text.count("converting model") == 1
    weights = first / "model.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert conversion.converted(source, configured, Checksums(), trust_remote_code=False, model="m") == first
    assert "is damaged (model.bin is not what was written); making it again" in caplog.text
    assert caplog.text.count("converting model") == 2


def test_int8_multiplies_in_8_bits(folder, tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("\n".join(" ".join(doc.split()) for doc in DOCS[:20]))
    target = tmp_path / "target"
    target.mkdir()
    source = models.save(models.bert_mean, folder)
    assert converted(source, target, quantise=True, calibration_texts=str(texts)) == {"warnings": []}
    assert "FakeQuantize" in (target / "model.xml").read_text()
    assert embed(openvino_backend.load(target, precision="int8").routes, TEXTS).shape == (len(TEXTS), 32)


# A child process that loads MiniLM. It prints its modules, its number of threads, and if a fork computes, with one and
# with two threads, and exits.
_WARM_START = """
import json, os, sys
from embedding_api.settings import load_settings
from embedding_api.engine.start import load_models
model, = load_models(load_settings()).models
model.route.backend.warm_up(model.route.reader.window)
ids = [tokens.ids for tokens in model.route.reader.read(["a cat", "tax law for small firms"]).tokens]
vectors = model.route.backend.compute(ids, 0).values
n_threads = len(os.listdir("/proc/self/task"))
child = os.fork()
if not child:
    same = (model.route.backend.compute(ids, 0).values == vectors).all()
    model.route.backend.prepare(1)
    before = len(os.listdir("/proc/self/task"))
    model.route.backend.use_threads(2)
    close = abs(model.route.backend.compute(ids, 0).values - vectors).max() < 1e-6
    more = len(os.listdir("/proc/self/task")) - before
    sys.exit(0 if same and close and more == 1 else 1)
status = os.waitpid(child, 0)[1]
assert sys.modules["openvino_telemetry"] is None
print(json.dumps([model.route.backend.name, n_threads, status, sorted({name.split(".")[0] for name in sys.modules})]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells a process's threads")
def test_a_start_from_the_cache_imports_no_torch_starts_no_thread_that_computes_and_survives_a_fork(monkeypatch):
    load_engine(load_settings()).close()
    done = subprocess.run(
        [sys.executable, "-c", _WARM_START],
        cwd=ROOT,
        env=os.environ | {"WORKERS": str(cores.count() + 1)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    name, n_threads, status, modules = json.loads(done.stdout)
    # The main thread, and two of OpenVINO's stream, which never compute: those that do belong to TBB.
    assert (name, n_threads, status) == ("openvino", 3, 0)
    imported = {"torch", "transformers", "sentence_transformers", "huggingface_hub", "nncf"} & set(modules)
    assert imported == set()


# A child process that imports every module of the engine, and prints the changes that the imports made.
_IMPORT_ALL = """
import importlib, json, pkgutil, sys
import torch, tqdm
def state():
    return [torch.get_num_threads(), torch.backends.mkldnn.enabled, tqdm.tqdm.monitor_interval]
before = state()
import embedding_api.engine
for module in pkgutil.walk_packages(embedding_api.engine.__path__, "embedding_api.engine."):
    if not module.name.endswith(("__main__", "backends.export")):
        importlib.import_module(module.name)
print(json.dumps([before, state(), "openvino_telemetry" in sys.modules, "openvino" in sys.modules]))
"""


def test_no_module_of_the_engine_acts_when_it_is_imported():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    before, after, *modules = json.loads(done.stdout)
    assert before[0] == 2
    assert after == before
    assert modules == [False, False]


# Python runs this as sitecustomize, before the imports of the conversion.
_RECORD = """
import os, socket
def _recorded(name, original):
    def record(*arguments, **options):
        with open(os.environ["RECORD"], "a") as file:
            file.write(f"{name} {arguments[-1]}\\n")
        return original(*arguments, **options)
    return record
socket.getaddrinfo = _recorded("getaddrinfo", socket.getaddrinfo)
socket.socket.connect = _recorded("connect", socket.socket.connect)
"""


def test_a_conversion_to_int8_opens_no_connection(folder, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(_RECORD)
    record = tmp_path / "record"
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # If CI is set, openvino's telemetry sends nothing, and the test would not find it.
    monkeypatch.delenv("CI", raising=False)
    environment = programs.environment(())
    probe = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    assert "connect" in record.read_text()
    record.unlink()
    configured = settings(monkeypatch, tmp_path, models.save(models.bert_mean, folder), PRECISION="int8")
    conversion.converted(
        Path(configured.supported_models[0].source), configured, Checksums(), trust_remote_code=False, model="m"
    )
    assert not record.exists(), record.read_text()


def test_nncf_is_the_one_that_the_requirements_pin():
    assert f"\nnncf=={conversion.NNCF_VERSION} " in (ROOT / "requirements.txt").read_text()


def test_int8_without_nncf_is_one_line_with_the_cure(folder, tmp_path, monkeypatch):
    configured = settings(monkeypatch, tmp_path, models.save(models.bert_mean, folder), PRECISION="int8")
    monkeypatch.setattr(conversion, "NNCF_VERSION", "0.0.0")
    cure = r"PRECISION=int8 needs nncf 0\.0\.0.*install requirements\.txt again, or nncf==0\.0\.0 alone"
    with pytest.raises(ModelLoadError, match=cure):
        load_engine(configured)


@pytest.mark.slow
def test_minilm_in_int8_with_the_texts_that_ship_is_within_the_bound_and_kept(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for name, value in {"CACHE_DIR": str(tmp_path), "PRECISION": "int8", "BACKEND": "openvino"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        engine = load_engine(load_settings())
        (model,) = engine.models.models
        assert (model.route.backend.name, model.route.backend.precision) == ("openvino", "int8")
        assert model.proof.value >= 0.98
        engine.close()
    assert caplog.text.count("converting model") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_conversion_ends_with_who_started_it(folder, tmp_path):
    """Given a start that is killed while it converts, then the conversion ends too, and frees the cache's lock."""
    program = (
        "from embedding_api.settings import load_settings\n"
        "from embedding_api.engine.start import load_engine\n"
        "load_engine(load_settings())\n"
    )
    source = models.save(models.bert_mean, folder)
    configured = {**os.environ, "SUPPORTED_MODELS": f"m={source}", "CACHE_DIR": str(tmp_path)}
    start = psutil.Popen([sys.executable, "-c", program], cwd=ROOT, env=configured)
    end = time.monotonic() + 30
    while not (children := start.children()):
        assert time.monotonic() < end, "nothing was converted"
        time.sleep(0.02)
    start.kill()
    start.wait(10)
    psutil.wait_procs(children, timeout=60)
    assert not children[0].is_running()


def test_signals_reach_a_process_after_one_of_its_models_is_gone(folder, tmp_path):
    """Given two models, when both are deleted, then the process still gets signals; see `openvino._core`."""
    assert converted(models.save(models.bert_mean, folder), tmp_path) == {"warnings": []}
    program = (
        "import signal\n"
        "from pathlib import Path\n"
        "from embedding_api.engine.backends import openvino_backend\n"
        f"path = Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: print('heard'))\n"
        "one, other = (openvino_backend.load(path, precision='float32') for _ in range(2))\n"
        "del one\n"
        "del other\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "heard\n"
