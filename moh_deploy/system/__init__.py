"""Files that appear whole, bounded readers, processes, signals: nothing here knows of MoH."""
