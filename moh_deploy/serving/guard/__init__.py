"""Return to safe answers: a ladder of ways to run a model, and what moves serving up and down it."""
