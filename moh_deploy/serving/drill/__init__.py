"""Break a server on purpose, under load, and say what its clients saw."""
