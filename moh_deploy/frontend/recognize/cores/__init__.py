"""Attention cores: softmax(query @ key) @ value, and how each way of writing it is read."""
