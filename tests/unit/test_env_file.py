"""Each line of .env sets something, or is refused with the cure."""

import os

import pytest

from embedding_api.errors import SettingsError
from embedding_api.settings import env_file, load_settings


@pytest.fixture
def load(tmp_path):
    """Return a function that loads the settings of a .env with these lines."""

    def load(*lines):
        (tmp_path / ".env").write_text("\n".join(lines))
        return load_settings()

    return load


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("CACHE_DIR=/srv/cache # the fast disk", "/srv/cache"),
        ("CACHE_DIR=/srv/cache\t#fast", "/srv/cache"),
        ("CACHE_DIR=/srv/a#b", "/srv/a#b"),
        ("CACHE_DIR=#b", "#b"),
        ("CACHE_DIR= # not yet", ""),
        ("CACHE_DIR=", ""),
        ("CACHE_DIR = /srv/cache ", "/srv/cache"),
        ('CACHE_DIR="/srv/cache # the fast disk"', "/srv/cache # the fast disk"),
        ("CACHE_DIR='/srv/cache' # the fast disk", "/srv/cache"),
        ('CACHE_DIR="/srv/cache" # the "fast" disk', "/srv/cache"),
        ('CACHE_DIR="/srv/"cache"', '/srv/"cache'),
        ("CACHE_DIR=a=b", "a=b"),
    ],
)
def test_a_value_ends_where_a_comment_begins_and_quotes_hold_one(tmp_path, line, value):
    (tmp_path / ".env").write_text(f"\n  # a comment\n{line}\n")
    assert env_file.read_values(tmp_path / ".env", ["CACHE_DIR"]) == {"CACHE_DIR": value}


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("export PORT=9000", "PORT"),
        ("PROT=9000", "PORT"),
        ("port=9000", "PORT"),
        ("Port = 9000", "PORT"),
        ("INFINITY_PORT=9000", "PORT"),
        ("HF_TOKENS=k", "HF_TOKEN"),
        ("hf_token=k", "HF_TOKEN"),
        ("HUGGING_FACE_HUB_TOKEN=k", "HF_TOKEN"),
        ("API_KEY_SECRETS=k", "API_KEY_SECRET"),
        ("API_KEY=k", "API_KEY_SECRET"),
        ("VLLM_API_KEY=k", "API_KEY_SECRET"),
        ("OPENAI_API_KEY=k", "API_KEY_SECRET"),
        ("MODEL=BAAI/bge-m3", "SUPPORTED_MODELS"),
        ("MODEL_ID=BAAI/bge-m3", "SUPPORTED_MODELS"),
        ("INFINITY_MODEL_ID=BAAI/bge-m3", "SUPPORTED_MODELS"),
        ("HOSTNAME=0.0.0.0", "HOST"),
        ("WEB_CONCURRENCY=2", "WORKERS"),
        ("DTYPE=float16", "PRECISION"),
        ("REQUEST_TIMEOUT=5", "REQUEST_TIMEOUT_S"),
    ],
)
def test_a_name_close_to_a_setting_is_refused_with_that_setting(load, line, setting):
    name = line.partition("=")[0].strip()
    with pytest.raises(SettingsError, match=rf"\.env sets '{name}', which is no setting; write {setting}=\.\.\.$"):
        load(line)


@pytest.mark.parametrize(
    "name",
    [
        "HF_HOME", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "HUGGING_FACE_X", "TRANSFORMERS_CACHE",
        "TOKENIZERS_PARALLELISM", "TORCH_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "GUNICORN_CMD_ARGS", "XDG_CACHE_HOME", "HTTPS_PROXY", "no_proxy",
        "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TMPDIR", "export HF_HOME",
    ],
)  # fmt: skip
def test_a_name_that_only_the_environment_sets_is_refused_with_that_cure(load, name):
    with pytest.raises(SettingsError, match=rf"\.env sets '{name}', .* environment alone; set it there$"):
        load(f"{name}=x")


@pytest.mark.parametrize("name", ["DATABASE_URL", "FOO", "x.y-z"])
def test_any_other_name_is_refused_with_the_place_of_all_settings(load, name):
    with pytest.raises(SettingsError, match=rf"\.env sets '{name}', .*no setting; \.env\.example lists them all$"):
        load(f"{name}=x")


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("PORT: 9000", "PORT"),
        ("PORT", "PORT"),
        ("- PORT=9000", "PORT"),
        ("export PORT 9000", "PORT"),
        ("api_key_secret: s3c=ret", "API_KEY_SECRET"),
        ("s3cret", "NAME"),
        ("=s3cret", "NAME"),
    ],
)
def test_a_line_that_sets_nothing_is_refused_by_number_without_showing_it(load, line, cure):
    with pytest.raises(SettingsError, match=rf"^line 2 of \.env is not NAME=value; write {cure}=\.\.\.$"):
        load("PORT=9000", line)


def test_an_unclosed_quote_is_refused_without_showing_its_value(load):
    with pytest.raises(SettingsError, match=r"^line 1 of \.env sets 'API_KEY_SECRET' to .* quote .*; close it$"):
        load('API_KEY_SECRET="s3cret', 'more"')


def test_a_name_that_is_set_twice_is_refused(load):
    with pytest.raises(SettingsError, match=r"^line 3 of \.env sets 'PORT' a second time; keep one of the two"):
        load("PORT=9000", "# PORT=1", "PORT=9001")


def test_names_that_compose_reads_are_ignored(load):
    lines = ["COMPOSE_PROJECT_NAME=x", "DOCKER_HOST=x", "GF_SECURITY_ADMIN_USER=x", "TZ=Europe/Zurich", "LANG=C"]
    assert load(*lines, "LANG=C", "COMPOSE_PROFILES='a", "TZ=b'") == load("")


def test_a_dangling_link_is_refused_unlike_a_missing_file(tmp_path):
    (tmp_path / ".env").symlink_to(tmp_path / "gone")
    with pytest.raises(SettingsError, match=r"\.env cannot be read .*No such file.*remove it"):
        load_settings()


@pytest.mark.parametrize("line", ["q0ZqXk7SecretSecretSecret=", "c2VjcmV0T2ZBTG9uZ0xlbmd0aA==", "S" * 50 + "="])
def test_a_line_that_may_be_a_secret_is_refused_by_number_alone(tmp_path, line):
    (tmp_path / ".env").write_text(f"PORT=1\n{line}\n")
    with pytest.raises(SettingsError) as refused:
        env_file.read_values(tmp_path / ".env", ["PORT"])
    assert line[:8] not in str(refused.value)
    assert "line 2 of " in str(refused.value)


@pytest.mark.parametrize("value", ["${SECRET}", "$SECRET", '"a$B"', "/x/${Y:-z}"])
def test_a_variable_that_compose_would_replace_is_refused_unless_single_quotes_hold_it(tmp_path, value):
    (tmp_path / ".env").write_text(f"API_KEY_SECRET={value}\n")
    with pytest.raises(SettingsError, match=r"holds \$NAME, which is not replaced here"):
        env_file.read_values(tmp_path / ".env", ["API_KEY_SECRET"])
    (tmp_path / ".env").write_text("API_KEY_SECRET='pa$Word'\n")
    assert env_file.read_values(tmp_path / ".env", ["API_KEY_SECRET"]) == {"API_KEY_SECRET": "pa$Word"}


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / ".env")
    with pytest.raises(ValueError, match="it is a pipe"):
        env_file.read_values(tmp_path / ".env", ["PORT"])
    assert env_file.value_of("LOG_FORMAT", tmp_path / ".env") == ""


def test_the_environment_wins_over_the_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text('PORT="9000"\nTHREADS=5\n')
    monkeypatch.setenv("PORT", "9001")
    settings = load_settings()
    assert (settings.port, settings.threads) == (9001, 5)


def test_a_byte_order_mark_hides_no_line(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfAPI_KEY_SECRET=secret\r\nPORT=9000\r\n")
    settings = load_settings()
    assert (settings.api_key_secret, settings.port) == (("secret",), 9000)


def test_only_the_working_folder_is_searched_for_a_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PORT=9000\n")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert load_settings().port == 8000


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"PORT=\xff\n")])
def test_an_unreadable_file_is_named(tmp_path, make):
    make(tmp_path / ".env")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        load_settings()
