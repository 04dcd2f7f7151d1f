"""An engine of one's own, in one file."""
