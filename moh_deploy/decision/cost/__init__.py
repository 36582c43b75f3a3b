"""What the arms of a decision cost: prices and traffic of a team, times that were measured."""
