"""OpenVINO on the CPU: models that are compiled for each shape, and our ops in them."""
