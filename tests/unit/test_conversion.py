"""Conversions: what decides that one is made again, and what is told where there is none."""

import pytest

from embedding_api.config import load_settings
from embedding_api.engine import cache, conversion


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def key(monkeypatch):
    """The key of the entry that a model's conversion would have, without making it."""
    asked = []

    def obtain(folder, key, make):
        asked.append(key)
        return folder

    monkeypatch.setattr(cache, "obtain", obtain)

    def key(source, *, trust_remote_code=False, **variables):
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, str(value))
            conversion.converted(source, load_settings(), trust_remote_code=trust_remote_code)
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
