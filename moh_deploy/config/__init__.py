"""Read what users ask for: options, export configurations, dynamic dimensions."""
