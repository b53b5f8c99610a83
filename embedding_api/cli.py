"""The command line: what would be served, whether the settings hold, vectors of a file's lines."""

import sys
import typing
from pathlib import Path
from typing import Any

import click
import orjson

from embedding_api import __version__, web
from embedding_api import settings as config
from embedding_api.engine.backends import Task
from embedding_api.engine.engine import load_engine
from embedding_api.errors import ServiceError
from embedding_api.telemetry import log


class _Group(click.Group):
    """A group whose commands end in one line and code 1 when something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            raise click.ClickException(error.message) from error
        except KeyboardInterrupt as error:
            raise click.ClickException("interrupted") from error


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
    told = config.load_settings()
    log.configure(told)
    document = web.openapi_document(told, load_engine(told).models)
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


@cli.command()
def check() -> None:
    """Check the settings, load every model and say what would be served."""
    told = config.load_settings()
    log.configure(told)
    for model in load_engine(told).models.models:
        click.echo(
            f"{model.name}: {model.route.backend.dim} dimensions, window "
            f"{model.route.reader.window or 'without limit'} tokens, {model.route.backend.name} "
            f"{model.route.backend.precision}, against sentence-transformers {model.proof}"
        )
    click.echo(
        f"{told.bind}: {told.workers} workers, {told.threads} threads each, {'keys' if told.require_auth else 'open'}"
    )


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--model", help="Name or alias; the first of SUPPORTED_MODELS if not given.")
@click.option("--input-type", type=click.Choice(typing.get_args(Task)), help="What the lines are to a search.")
@click.option("--prompt-name", help="Which of the model's prompts stands before each line.")
def embed(file: Path, model: str | None, input_type: Task | None, prompt_name: str | None) -> None:
    """Print the vector of each line of FILE, as a JSON array a line; - reads standard input."""
    told = config.load_settings()
    log.configure(told)
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read as UTF-8 text: {error}") from error
    # At line feeds alone, and every line counts: the vectors must stand in the lines of their texts.
    lines = text.removesuffix("\n").split("\n")
    if "" in lines:
        raise click.ClickException(f"line {lines.index('') + 1} of {file} is empty; leave it out")
    engine = load_engine(told)
    try:
        name = model or told.supported_models[0].name
        for vector in engine.embed(name, lines, input_type=input_type, prompt_name=prompt_name).vectors:
            click.echo(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    finally:
        engine.close()
