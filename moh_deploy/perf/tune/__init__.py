"""Time each way to run each layer on this machine, and choose."""
