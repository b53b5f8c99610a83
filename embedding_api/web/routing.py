"""The route of a request that Flask has not seen."""

import os
from typing import NamedTuple
from urllib.parse import unquote

from flask import Flask
from werkzeug.exceptions import HTTPException


class Route(NamedTuple):
    """A route that exists.

    Attributes:
        rule: Such as `/v1/models/<path:model_id>`.
        endpoint: Its name in Flask, such as `models.show`.
    """

    rule: str
    endpoint: str

    @property
    def blueprint(self) -> str:
        """The name of its blueprint in Flask, such as `models`."""
        return self.endpoint.rpartition(".")[0]


def route_of(app: Flask, method: str, path: str) -> Route | None:
    """Return the route for a method and a path as it was sent; None if there is no such path or method."""
    path = unquote(path.removeprefix(os.environ.get("SCRIPT_NAME", "")))
    try:
        rule, _ = app.url_map.bind("").match(path, method, return_rule=True)
    except HTTPException:
        return None
    return Route(rule.rule, rule.endpoint)
