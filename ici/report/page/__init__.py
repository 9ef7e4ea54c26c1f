"""The interactive report: one file that works offline, from disk."""
