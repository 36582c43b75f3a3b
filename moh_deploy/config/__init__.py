"""What users ask for: options, export configurations, dynamic dimensions."""
