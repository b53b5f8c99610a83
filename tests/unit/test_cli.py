"""The command line, with a fake engine."""

import json

import pytest
from click.testing import CliRunner

from embedding_api import cli
from embedding_api import settings as config
from embedding_api.errors import ModelLoadError
from tests.fakes import DIM, fake_engine, fake_model


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs a command. `engine` returns the engine that the command loads."""
    monkeypatch.setattr(cli.log, "configure", lambda settings: None)

    def run(*arguments, engine=None, **options):
        def load(settings):
            return engine() if engine else fake_engine(fake_model(settings.supported_models[0].name))

        monkeypatch.setattr(cli, "load_engine", load)
        return CliRunner().invoke(cli.cli, arguments, **options)

    return run


def test_settings_prints_the_example_file(run):
    assert run("settings").output == config.env_example()


def test_openapi_prints_the_document_that_would_be_served(run):
    done = run("openapi", env={"MAX_INPUTS": "7"})
    fields = json.loads(done.output)["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert fields["model"]["enum"] == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert fields["prompt_name"]["enum"] == ["query", "law", None]
    assert fields["input"]["anyOf"][1]["maxItems"] == 7


def test_check_prints_what_the_service_would_serve(run):
    done = run("check", env={"WORKERS": "2"})
    assert done.exit_code == 0
    assert "sentence-transformers/all-MiniLM-L6-v2: 8 dimensions, window 16 tokens, fake float32" in done.output
    assert "127.0.0.1:8000: 2 workers" in done.output


def test_embed_prints_a_vector_a_line(run, tmp_path):
    (tmp_path / "texts").write_text("a cat\ntax\u2028law\n")
    lines = [json.loads(line) for line in run("embed", str(tmp_path / "texts")).output.splitlines()]
    assert [len(vector) for vector in lines] == [DIM, DIM]
    assert [json.loads(line) for line in run("embed", "-", input="a cat\ntax\u2028law").output.splitlines()] == lines


def test_embed_puts_the_prompt_before_each_line(run):
    plain, *prompted = (
        run("embed", "-", *options, input="a cat").output
        for options in ([], ["--input-type", "query"], ["--prompt-name", "query"])
    )
    assert prompted == [run("embed", "-", input="query: a cat").output] * 2
    assert plain != prompted[0]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "Error: line 1 of - is empty; leave it out\n"),
        ("a\n\nb\n", "Error: line 2 of - is empty; leave it out\n"),
        (b"\xff", "Error: - cannot be read as UTF-8 text: "),
    ],
)
def test_lines_that_cannot_be_embedded_are_named(run, text, start):
    done = run("embed", "-", input=text)
    assert done.exit_code == 1
    assert done.output.startswith(start)


def test_an_error_is_one_line_and_exit_code_1(run):
    done = run("check", env={"PORT": "x"})
    assert done.exit_code == 1
    assert done.output.startswith("Error: PORT='x' must be")

    def fail():
        raise ModelLoadError("model m: no")

    assert run("check", engine=fail).output == "Error: model m: no\n"
    assert "is not served here" in run("embed", "-", "--model", "nope", input="a").output


def test_ctrl_c_ends_a_command_in_one_line(run):
    def interrupt():
        raise KeyboardInterrupt

    done = run("check", engine=interrupt)
    assert (done.exit_code, done.output) == (1, "Error: interrupted\n")
