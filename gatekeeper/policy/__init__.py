"""Who has permission. May be async; does no I/O itself (that is what backends are for)."""
