"""One file a route: load the request, call the engine, dump the answer."""
