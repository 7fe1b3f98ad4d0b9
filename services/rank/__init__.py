"""The Rank service."""
