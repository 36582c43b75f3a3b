"""Reports as one HTML page that needs nothing else; templates draw what the others lay out."""
