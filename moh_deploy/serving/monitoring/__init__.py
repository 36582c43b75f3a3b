"""Alert rules and a dashboard that fit `moh-deploy serve` and Triton."""
