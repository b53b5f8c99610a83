"""Which backend serves a model, and in which precision, whatever fails on the way."""

from pathlib import Path

import pytest

from embedding_api.config import load_settings
from embedding_api.engine import loading
from embedding_api.engine.proof import PROBE_TEXTS
from embedding_api.engine.text import Reader
from embedding_api.errors import ModelLoadError
from tests.fakes import FakeBackend, fake_route, word_tokenizer


class Loader:
    """Gives a fake model.

    Args:
        off: By the precision that it is asked for, how far its vectors are off the reference; by none if not there.
        fails: What loading raises.
        stuck: What computing raises.
    """

    def __init__(self, name, off=(), fails=None, stuck=None):
        self.name, self.off, self.fails, self.stuck = name, dict(off), fails, stuck

    def __call__(self, spec, folder, settings):
        if self.fails is not None:
            raise self.fails
        reader = Reader(word_tokenizer(), window=None)
        backend = FakeBackend()
        backend.name, backend.precision = self.name, settings.precision
        reference = backend.embed([tokens.ids for tokens in reader.read(PROBE_TEXTS).tokens], 0)
        backend.error = self.stuck
        reference[:, 0] += self.off.get(settings.precision, 0)
        return {None: fake_route(backend, reader=reader, reference=reference)}


def load(monkeypatch, openvino, torch=None, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    loaders = {"openvino": openvino, "torch": torch or Loader("torch")}
    return loading.load(settings.supported_models[0], Path("/folder"), settings, loaders).routes[None].backend


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
    assert f"is served by torch in float32, which is slower, since for OpenVINO: {type(error).__name__}: " in line
    assert "\n" not in line
    with pytest.raises(ModelLoadError, match=r"cannot be served by openvino: \w+Error: .*; set BACKEND=auto"):
        load(monkeypatch, openvino, BACKEND="openvino")


def test_what_the_operator_must_mend_is_not_passed_over(monkeypatch):
    with pytest.raises(ModelLoadError, match="install nncf"):
        load(monkeypatch, Loader("openvino", fails=ModelLoadError("install nncf")))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_model_that_does_not_bear_a_precision_is_served_in_float32_and_the_figure_told(
    monkeypatch, caplog, precision
):
    openvino = Loader("openvino", off={precision: 1})
    backend = load(monkeypatch, openvino, PRECISION=precision)
    assert (backend.name, backend.precision) == ("openvino", "float32")
    assert f"is served in float32, which is slower, since its vectors in {precision} differ" in caplog.text
    assert "cosine 0." in caplog.text
    with pytest.raises(ModelLoadError, match=rf"its vectors in {precision} differ.*; set PRECISION=float32"):
        load(monkeypatch, openvino, BACKEND="openvino")


def test_out_of_bounds_in_float32_too_is_left_to_torch(monkeypatch):
    openvino = Loader("openvino", off={"bfloat16": 1, "float32": 1})
    assert load(monkeypatch, openvino, PRECISION="bfloat16").name == "torch"
    with pytest.raises(ModelLoadError, match=r"cannot be served by torch: .*; set PRECISION=float32"):
        load(monkeypatch, openvino, Loader("torch", off={"bfloat16": 1}))


def test_what_no_backend_can_serve_is_told_without_a_word_of_one_that_does(monkeypatch, caplog):
    broken = ValueError("no such layer")
    with pytest.raises(ModelLoadError, match="cannot be served by torch: ValueError: no such layer"):
        load(monkeypatch, Loader("openvino", fails=broken), Loader("torch", fails=broken))
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "header too large"),
        (b"\x02" + bytes(7) + b"{}" + b"more", "SafetensorError"),
        (b"", "SafetensorError"),
    ],
    ids=["pointer of git lfs", "another length", "empty"],
)
def test_weights_that_are_not_whole_are_told_before_any_backend_tries(monkeypatch, tmp_path, content, why):
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "model.safetensors").write_bytes(content)
    loaders = {"openvino": Loader("openvino", fails=AssertionError("tried"))}
    spec = load_settings().supported_models[0]
    with pytest.raises(ModelLoadError, match=rf"cannot be loaded: model.safetensors: .*{why}.*; get the model's files"):
        loading.load(spec, tmp_path, load_settings(), loaders)


def test_every_route_is_proven_and_the_one_nearest_to_its_bound_is_told(monkeypatch):
    def load_both(spec, folder, settings):
        return Loader("torch")(spec, folder, settings) | {"query": Loader("torch", off)(spec, folder, settings)[None]}

    monkeypatch.setenv("BACKEND", "torch")
    settings = load_settings()
    loaders = {"openvino": None, "torch": load_both}
    off = {"float32": 1e-6}
    told = loading.load(settings.supported_models[0], Path("/folder"), settings, loaders)
    assert told.proof.value == pytest.approx(1e-6, rel=0.1)
    off = {"float32": 1e-3}
    with pytest.raises(ModelLoadError, match="differ from sentence-transformers' own"):
        loading.load(settings.supported_models[0], Path("/folder"), settings, loaders)
