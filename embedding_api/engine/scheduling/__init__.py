"""Which texts are computed together, when and where. Pure: no thread, no socket, no clock of its own."""
