"""The settings: the table, its parsing rules, and the sources of the values."""

from embedding_api.settings.loading import env_example, load_settings, log_format
from embedding_api.settings.table import Settings

__all__ = ["Settings", "env_example", "load_settings", "log_format"]
