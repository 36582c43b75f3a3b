"""The commands of what serves packages."""
