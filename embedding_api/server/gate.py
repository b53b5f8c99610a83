"""Which requests are refused before a thread works on them, and with which error."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from embedding_api.errors import InvalidKeyError, NotReadyError, ServiceError
from embedding_api.request import joined
from embedding_api.server.parser import Parser
from embedding_api.service import service_of
from embedding_api.web import auth
from embedding_api.web.routing import route_of

# Endpoints that need the engine; and those that tell a load balancer whether to send more.
_WORK, _READINESS = frozenset({"embeddings.create_embeddings"}), frozenset({"health.get_ready"})
# Methods whose routes read no body, so that a faulty one does not matter to them.
_BODILESS = frozenset({"GET", "HEAD"})
# Bytes for which there must be room before a body comes whose length is not known.
_UNKNOWN_BODY_BYTES = 65_536


class Gate:
    """Judges a request by its head, by how much of it has come, and by how much waits. The loop asks it.

    Args:
        application: The Flask application with its service.
        is_draining: Returns True while the whole server stops and still accepts.
    """

    def __init__(self, application: Any, is_draining: Callable[[], bool]) -> None:
        self._application = application
        self._service = service_of(application)
        self._is_draining = is_draining

    def refusal_of_rest(self, parser: Parser) -> ServiceError | None:
        """Return why the rest of a request must not come; None if it may."""
        if not parser.has_body:
            return None
        if parser.is_to_file:
            # A client without a key may not fill the disk, and no client may while the server stops.
            return self._for_route(parser.head, _draining() if self._is_draining() else None)
        admission, n_missing_bytes = self._service.engine.runner.admission, parser.n_missing_bytes
        has_room = admission.has_room(_UNKNOWN_BODY_BYTES if n_missing_bytes is None else n_missing_bytes)
        return None if has_room else admission.overloaded()

    def refusal(self, head: Any, error: ServiceError | None, *, has_body: bool) -> ServiceError | None:
        """Return the error with which a request is refused; None if the application must answer it.

        A request that has no key where it needs one is refused for that, and learns nothing else.

        Args:
            head: The head of the request.
            error: What is wrong with the request or with its body.
            has_body: The request has a body.
        """
        if error is not None:
            return None if head.method in _BODILESS else self._for_route(head, error)
        if self._is_draining():
            return self._for_route(head, _draining(), _WORK | _READINESS)
        admission = self._service.engine.runner.admission
        if has_body and admission.is_full():
            return self._for_route(head, admission.overloaded(), _WORK)
        return None

    def _for_route(
        self, head: Any, error: ServiceError | None, endpoints: AbstractSet[str] | None = None
    ) -> ServiceError | None:
        """Return the error if it concerns the route of the request, or the error for a missing key."""
        route = route_of(self._application, head.method, head.path)
        if route is None or (endpoints is not None and route.endpoint not in endpoints):
            return None
        settings = self._service.settings
        if auth.needs_key(route.endpoint, settings):
            try:
                auth.check_key(joined(head.headers).get("authorization", ""), settings.api_key_secret)
            except InvalidKeyError as missing_key:
                return missing_key
        return error


def _draining() -> NotReadyError:
    return NotReadyError("the server is stopping; ask another, or come again when it is back")
