"""The command line: print the settings and the OpenAPI document, check a configuration, embed the lines of a file."""

import sys
import typing
from pathlib import Path
from typing import Any

import click
import orjson

from embedding_api import __version__
from embedding_api import settings as config
from embedding_api.app import create_app
from embedding_api.engine.backends import Task
from embedding_api.engine.start import load_engine
from embedding_api.errors import ServiceError
from embedding_api.telemetry import log


class _Group(click.Group):
    """A group whose commands end with one line and exit code 1 if they fail."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            raise click.ClickException(error.message) from error
        except KeyboardInterrupt as error:
            raise click.ClickException("interrupted") from error


def _load_settings() -> config.Settings:
    """Return the settings, after they have configured the log."""
    loaded = config.load_settings()
    log.configure(loaded)
    return loaded


@click.group(cls=_Group)
@click.version_option(__version__)
def cli() -> None:
    """Memementor Embedding Service. Reads the same settings as the server."""


@cli.command()
def settings() -> None:
    """Print every setting with its meaning and default, as .env.example has them."""
    click.echo(config.env_example(), nl=False)


@cli.command()
def openapi() -> None:
    """Load every model and print the OpenAPI document of the service with these settings."""
    loaded = _load_settings()
    app = create_app(loaded, load_engine(loaded))
    click.echo(orjson.dumps(orjson.loads(app.extensions["openapi"]), option=orjson.OPT_INDENT_2))


@cli.command()
def check() -> None:
    """Check the settings, load every model and print what the service would serve."""
    loaded = _load_settings()
    for model in load_engine(loaded).models.models:
        click.echo(
            f"{model.name}: {model.dimensions} dimensions, window {model.window or 'without limit'} tokens, "
            f"{model.backend} {model.precision}, against sentence-transformers {model.proof}"
        )
    keys = "keys" if loaded.require_auth else "open"
    click.echo(f"{loaded.bind}: {loaded.workers} workers, {loaded.threads} threads each, {keys}")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--model", help="Name or alias; the first of SUPPORTED_MODELS if not given.")
@click.option("--input-type", type=click.Choice(typing.get_args(Task)), help="The role of the lines in a search.")
@click.option("--prompt-name", help="The model's prompt to put before each line.")
def embed(file: Path, model: str | None, input_type: Task | None, prompt_name: str | None) -> None:
    """Print the vector of each line of FILE, as a JSON array a line; - reads standard input."""
    loaded = _load_settings()
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read as UTF-8 text: {error}") from error
    # Only line feeds separate lines, and no line is dropped: the output has the vector of each line at its place.
    lines = text.removesuffix("\n").split("\n")
    if "" in lines:
        raise click.ClickException(f"line {lines.index('') + 1} of {file} is empty; leave it out")
    engine = load_engine(loaded)
    try:
        name = model or loaded.supported_models[0].name
        for vector in engine.embed(name, lines, input_type=input_type, prompt_name=prompt_name).vectors:
            click.echo(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    finally:
        engine.close()
