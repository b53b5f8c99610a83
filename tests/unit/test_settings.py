"""Settings are read once. The error for a wrong setting has its key, its value and the rule."""

import os
import pwd
from pathlib import Path

import pytest

from embedding_api.errors import SettingsError
from embedding_api.settings import load_settings

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def load(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_without_any_setting_minilm_is_served_on_loopback_without_a_key(monkeypatch):
    monkeypatch.setattr("embedding_api.machine.cores.count", lambda: 7)
    settings = load_settings()
    assert [spec.name for spec in settings.supported_models] == [MINILM]
    assert (settings.bind, settings.require_auth, settings.workers) == ("127.0.0.1:8000", False, 8)


@pytest.mark.parametrize(
    ("name", "value", "field", "meaning"),
    [
        ("PORT", " 9000 ", "port", 9000),
        ("PORT", '"9000"', "port", 9000),
        ("PORT", "'9000'", "port", 9000),
        ("PORT", "", "port", 8000),
        ("HOST", "::1", "bind", "[::1]:8000"),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("TRUNCATE", "False", "truncate", False),
        ("TRUNCATE", "0", "truncate", False),
        ("ALLOW_PICKLE", "Yes", "allow_pickle", True),
        ("API_KEY_SECRET", "a, b,,c", "api_key_secret", ("a", "b", "c")),
        ("API_KEY_SECRET", '"a"', "require_auth", True),
        ("REQUIRE_AUTH", "", "require_auth", False),
        ("WORKERS", "3", "workers", 3),
        ("TRUST_REMOTE_CODE", MINILM, "trust_remote_code", (MINILM,)),
    ],
)
def test_a_value_is_read_with_or_without_quotes_and_an_empty_one_means_the_default(
    monkeypatch, name, value, field, meaning
):
    assert getattr(load(monkeypatch, **{name: value}), field) == meaning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "8000 # web"),
        ("PORT", "-1"),
        ("PORT", "\u0663"),
        ("HOST", "http://localhost"),
        ("HOST", "127.0.0.1:99"),
        ("HOST", "[::1]"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("DEVICE", "tpu"),
        ("REQUIRE_AUTH", "maybe"),
        ("WORKERS", "0"),
        ("WORKERS", "two"),
        ("THREADS", "0"),
        ("MAX_INPUTS", "1e3"),
        ("MAX_BODY_BYTES", "32MB"),
        ("GRACEFUL_TIMEOUT_S", "0"),
        ("INFERENCE_TIMEOUT_S", "soon"),
        ("TRUNCATE", "2"),
        ("TOKEN_IDS", "decode"),
        ("BACKEND", "onnx"),
        ("PRECISION", "float8"),
        ("ALLOW_PICKLE", "?"),
        ("SUPPORTED_MODELS", ","),
        ("SUPPORTED_MODELS", "a/b/c"),
        ("SUPPORTED_MODELS", "a b"),
        ("SUPPORTED_MODELS", "a/b@"),
        ("SUPPORTED_MODELS", "/"),
        ("SUPPORTED_MODELS", "x="),
        ("SUPPORTED_MODELS", "a/b,a/b"),
        ("SUPPORTED_MODELS", "é=a/b"),
        ("TRUST_REMOTE_CODE", "other"),
        ("TRUST_REMOTE_CODE", "some/other@main"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_itself(monkeypatch, name, value):
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **{name: value})
    assert str(refused.value).startswith(f"{name}={value!r}")
    assert len(str(refused.value)) > len(f"{name}={value!r} ")


@pytest.mark.parametrize("value", [",", "two words", '"k1","k2"'])
def test_a_wrong_key_is_refused_and_not_shown(monkeypatch, value):
    with pytest.raises(SettingsError, match=r"^API_KEY_SECRET=\(hidden\) must hold") as refused:
        load(monkeypatch, API_KEY_SECRET=value)
    assert "two words" not in str(refused.value)


WRONG_ADDRESSES = ["127.0.0.1:4318", "grpc://x:4317", "http://", "http://user:word@x", "http://x?key=word",
                   "http://x:99999", "http://[::1", "http://x:word"]  # fmt: skip


@pytest.mark.parametrize("value", WRONG_ADDRESSES)
def test_a_wrong_address_of_a_collector_is_refused_and_not_shown(monkeypatch, value):
    with pytest.raises(
        SettingsError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT=\(hidden\) must be .*http://host:port"
    ) as refused:
        load(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=value)
    assert "word" not in str(refused.value).replace("password", "")


@pytest.mark.parametrize("value", ["", "http://127.0.0.1:4318", "https://[::1]/otlp/"])
def test_a_right_address_of_a_collector_is_accepted(monkeypatch, value):
    assert load(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=value).otel_exporter_otlp_endpoint == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY_SECRET", "your_secret_key_here"),
        ("API_KEY_SECRET", "mine, Your_Secret_Key_Here"),
        ("HF_TOKEN", "your_huggingface_token_here"),
    ],
)
@pytest.mark.parametrize("is_in_file", [True, False], ids=["file", "environment"])
def test_the_examples_placeholder_of_a_secret_is_refused(monkeypatch, tmp_path, name, value, is_in_file):
    if is_in_file:
        (tmp_path / ".env").write_text(f'{name}="{value}"\n')
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SettingsError, match=rf"^{name}=\(hidden\) is what \.env\.example shows.*set your own"
    ) as refused:
        load_settings()
    assert "mine" not in str(refused.value)


def test_no_representation_shows_a_secret(monkeypatch):
    settings = load(monkeypatch, API_KEY_SECRET="key-1", HF_TOKEN="token-1")
    assert "key-1" not in repr(settings)
    assert "token-1" not in repr(settings)


def test_requiring_keys_without_having_any_is_refused(monkeypatch):
    with pytest.raises(SettingsError, match=r"REQUIRE_AUTH=true without API_KEY_SECRET.*set API_KEY_SECRET"):
        load(monkeypatch, REQUIRE_AUTH="true")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BACKEND": "openvino", "DEVICE": "cuda"}, r"BACKEND=openvino with DEVICE=cuda: .*unset BACKEND"),
        ({"PRECISION": "int8", "BACKEND": "torch"}, r"PRECISION=int8 with BACKEND=torch: .*unset BACKEND"),
        (
            {"PRECISION": "int8", "CALIBRATION_TEXTS": "/no/such"},
            r"CALIBRATION_TEXTS=/no/such cannot be read .No such file or directory.; name a file",
        ),
        ({"PRECISION": "int8", "DEVICE": "mps"}, r"PRECISION=int8 with DEVICE=mps: .*unset DEVICE"),
        ({"PRECISION": "float16"}, r"PRECISION=float16 with DEVICE=cpu: .*set PRECISION to .*, or set DEVICE=cuda"),
        ({"PRECISION": "float16", "DEVICE": "mps"}, r"PRECISION=float16 with DEVICE=mps: .*set PRECISION to bfloat16"),
    ],
)
def test_a_precision_or_backend_that_contradicts_another_setting_is_refused(monkeypatch, variables, message):
    with pytest.raises(SettingsError, match=message):
        load(monkeypatch, **variables)


def test_float16_is_a_precision_on_cuda(monkeypatch):
    assert load(monkeypatch, DEVICE="cuda", PRECISION="float16").precision == "float16"


@pytest.mark.parametrize(
    ("make", "flaw"),
    [
        (lambda file: file.write_bytes(b"\xe9t\xe9"), "is not UTF-8"),
        (lambda file: file.write_text("\n \n"), "holds no text"),
        (lambda file: file.mkdir(), "cannot be read"),
    ],
)
def test_an_unusable_file_of_calibration_texts_is_refused_if_it_would_be_read(monkeypatch, tmp_path, make, flaw):
    file = tmp_path / "texts"
    make(file)
    assert load(monkeypatch, CALIBRATION_TEXTS=str(file)).calibration_texts == file
    with pytest.raises(SettingsError, match=rf"CALIBRATION_TEXTS={file} {flaw}.*; name a file"):
        load(monkeypatch, PRECISION="int8", CALIBRATION_TEXTS=str(file))


@pytest.mark.parametrize(
    ("xdg", "folder"),
    [
        ("/x", "/x/memementor-embeddings"),
        ("x", "/h/.cache/memementor-embeddings"),
        ("", "/h/.cache/memementor-embeddings"),
    ],
)
def test_the_cache_is_in_the_users_cache_folder_by_default(monkeypatch, xdg, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/h")
    assert load(monkeypatch, CACHE_DIR="").cache_dir == Path(folder)
    assert load(monkeypatch, CACHE_DIR="/named").cache_dir == Path("/named")


def test_without_the_variable_home_the_cache_is_in_the_users_home_folder(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert load(monkeypatch, CACHE_DIR="").cache_dir == home / ".cache" / "memementor-embeddings"
    monkeypatch.setattr(os, "geteuid", lambda: 2**31 - 2)
    with pytest.raises(NotADirectoryError):
        load(monkeypatch, CACHE_DIR="").cache_dir.mkdir(parents=True)


def test_several_workers_share_a_device_on_linux_only(monkeypatch):
    assert 1 <= load(monkeypatch, DEVICE="cuda").workers <= 4
    assert load(monkeypatch, DEVICE="cuda", WORKERS="2").workers == 2
    monkeypatch.setattr("sys.platform", "darwin")
    assert load(monkeypatch, DEVICE="mps", WORKERS="").workers == 1
    with pytest.raises(SettingsError, match="WORKERS=2 with DEVICE=mps"):
        load(monkeypatch, DEVICE="mps", WORKERS="2")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("API_KEY_SECRET", "k\udcff", "API_KEY_SECRET=(hidden) must be text in UTF-8"),
        ("CACHE_DIR", "~nobody-of-this-name/x", "home folder cannot be found; write the whole path"),
        ("SUPPORTED_MODELS", "a" * 300 + "/b/c", "each entry must be a Hugging Face name"),
        ("SUPPORTED_MODELS", "https://me:s3cret@hub/a/b", "https://(hidden)@hub/a/b"),
        ("HOST", "https://me:s3cret@host/", "https://(hidden)@host/"),
    ],
)
def test_an_odd_value_is_refused_without_showing_its_password(monkeypatch, name, value, message):
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **{name: value})
    assert message in str(refused.value)
    assert "s3cret" not in str(refused.value)
