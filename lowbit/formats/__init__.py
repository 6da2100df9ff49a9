"""Number formats: which numbers the codes stand for, one family per file."""
