"""Checkpoint folders: written, found, resumed from, exported."""
