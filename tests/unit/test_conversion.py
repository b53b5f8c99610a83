"""Conversions: the inputs of their cache key, and models that cannot be converted."""

import ast
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedding_api
from embedding_api.engine.backends import UnfitError
from embedding_api.engine.models import cache, checksums, conversion
from embedding_api.engine.models.checksums import Checksums
from embedding_api.errors import ModelLoadError
from embedding_api.settings import load_settings

PACKAGE = Path(embedding_api.__file__).parent


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def key(monkeypatch):
    """Return a function that gives the cache key of a model's conversion, without converting the model."""
    asked = []

    def obtain(folder, key, make, checksums, **_):
        asked.append(key)
        return folder

    monkeypatch.setattr(cache, "obtain", obtain)

    def key(source, *, trust_remote_code=False, **variables):
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, str(value))
            conversion.converted(source, load_settings(), Checksums(), trust_remote_code=trust_remote_code, model="m")
        return asked.pop()

    return key


def test_calibration_texts_decide_in_int8_alone(model, key, tmp_path):
    texts = tmp_path / "texts"
    assert key(model, CALIBRATION_TEXTS=texts) == key(model)
    texts.write_text("one")
    assert key(model, CALIBRATION_TEXTS=texts) == key(model)
    named = key(model, PRECISION="int8", CALIBRATION_TEXTS=texts)
    assert named != key(model, PRECISION="int8")
    texts.write_text("another")
    assert key(model, PRECISION="int8", CALIBRATION_TEXTS=texts) != named


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "model.safetensors").write_bytes(b"weightz"),
        lambda model: (model / "1_Pooling" / "config.json").write_text("[]"),
        lambda model: (model / "1_Pooling").rename(model / "2_Pooling"),
        lambda model: (model / "modules.json").write_text("[]"),
    ],
)
def test_another_model_is_another_entry(model, key, change):
    before = key(model)
    change(model)
    assert key(model) != before


def test_every_option_decides(model, key):
    keys = {
        key(model),
        key(model, trust_remote_code=True),
        key(model, ALLOW_PICKLE="true"),
        key(model, PRECISION="int8"),
    }
    assert len(keys) == 4
    assert key(model, PRECISION="bfloat16") == key(model)


def test_unused_files_and_the_models_path_do_not_change_the_key(model, key):
    before = key(model)
    (model / "README.md").write_text("read me")
    (model / ".cache").mkdir()
    (model / ".cache" / "file").write_text("")
    assert key(model) == before
    assert key(model.rename(model.with_name("moved"))) == before


def test_a_folder_behind_a_link_belongs_to_the_model_and_may_lead_back_to_it(model, key):
    elsewhere = (model / "1_Pooling").rename(model.with_name("elsewhere"))
    (model / "1_Pooling").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(model)
    before = key(model)
    (elsewhere / "config.json").write_text("[]")
    assert key(model) != before


# Files that the conversion imports and whose output is not stored: types, process-wide options, errors.
WITHOUT_EFFECT = {
    "engine/backends/__init__.py", "engine/backends/bodies.py", "engine/backends/openvino_backend.py",
    "engine/backends/tbb.py", "engine/work.py", "errors.py", "machine/__init__.py", "machine/analytics.py",
    "machine/memory.py", "machine/scratch.py", "telemetry/__init__.py",
}  # fmt: skip


def imported(file: Path) -> Iterator[Path]:
    """Return the files of this package that a file imports at any place."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("embedding_api"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = PACKAGE.parent / name.replace(".", "/")
                yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))


def test_each_file_that_the_conversion_imports_decides_or_is_known_to_have_no_effect():
    found, rest = set(), [PACKAGE / "engine/backends/convert.py"]
    while rest:
        file = rest.pop()
        if file not in found:
            found.add(file)
            rest += imported(file)
    names = {str(file.relative_to(PACKAGE)) for file in found} - {"__init__.py"}
    assert names == {*conversion._OWN, *WITHOUT_EFFECT}


@pytest.mark.parametrize("name", [*conversion._OWN, conversion._OWN_CALIBRATION_TEXTS])
def test_code_and_texts_of_our_own_decide(model, key, monkeypatch, name):
    before = key(model, PRECISION="int8")

    def other(self, path):
        return "x" if str(path).endswith(f"embedding_api/{name}") else checksums.sha256(path)

    monkeypatch.setattr(Checksums, "sha256", other)
    assert key(model, PRECISION="int8") != before


def test_a_file_that_cannot_be_read_is_a_clause_and_no_traceback(model, key, monkeypatch):
    def fail(self, path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Checksums, "sha256", fail)
    with pytest.raises(UnfitError, match=r"cannot be read \(Permission denied\)"):
        key(model)


def test_an_unusable_cache_ends_the_start_and_is_no_fault_of_the_model(model, monkeypatch, tmp_path):
    """Another backend would not help, so that the start ends and tells the operator the cure."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match=r"CACHE_DIR=.*; set CACHE_DIR to .*, or BACKEND=torch"):
        conversion.converted(model, load_settings(), Checksums(), trust_remote_code=False, model="m")


@pytest.mark.parametrize(("precision", "part"), [("float32", 2), ("int8", 8)])
def test_a_conversion_that_cannot_fit_on_the_disk_is_not_begun(model, monkeypatch, precision, part):
    (model / "model.safetensors").write_bytes(bytes(8000))
    asked = []
    monkeypatch.setattr(
        cache, "obtain", lambda folder, key, make, checksums, *, n_bytes: asked.append(n_bytes) or folder
    )
    monkeypatch.setenv("PRECISION", precision)
    conversion.converted(model, load_settings(), Checksums(), trust_remote_code=False, model="m")
    assert asked == [8000 // part]
