"""Price the alternatives of a decision: a team's prices and traffic, measured times."""
