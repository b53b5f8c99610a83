"""The settings: a table, the rules that parse it, and where the values come from."""

from embedding_api.settings.loading import env_example, load_settings, log_format
from embedding_api.settings.table import Settings

__all__ = ["Settings", "env_example", "load_settings", "log_format"]
