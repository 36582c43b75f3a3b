"""Text from a language model's package: tokens one after the other, and words of them."""
