"""Which of several ways to serve a model is worth it, by a plan that was made before the data."""
