"""Each file has the routes of one subject: load the request, call the engine, dump the response."""
