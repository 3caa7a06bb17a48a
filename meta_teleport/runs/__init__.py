"""Runs on disk: folders, safe reading and writing."""
