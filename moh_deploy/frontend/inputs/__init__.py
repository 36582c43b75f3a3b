"""Example inputs and their dynamic dimensions."""
