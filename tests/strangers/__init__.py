"""Models that strangers would bring, written before the recogniser had seen them."""
