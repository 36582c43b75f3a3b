"""Return to safe answers: ways to run a model, and what moves serving up and down among them."""
