"""The route of a request that Flask has not seen."""

import os
from urllib.parse import unquote

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule


def route_of(app: Flask, method: str, path: str) -> Rule | None:
    """Return the route for a method and a path as it was sent; None if there is no such path or method.

    Its `rule` is such as `/v1/models/<path:model_id>`, its `endpoint` such as `models.get_model`.
    """
    path = unquote(path.removeprefix(os.environ.get("SCRIPT_NAME", "")))
    try:
        route, _ = app.url_map.bind("").match(path, method, return_rule=True)
    except HTTPException:
        return None
    return route
