"""The public functions of what serves packages."""
