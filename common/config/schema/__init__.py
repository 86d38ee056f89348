"""Every key: its section, type, bounds, default, meaning and readers, defined once."""
