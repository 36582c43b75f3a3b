"""Whether live routing is still what it was with traffic that is known to be good."""
