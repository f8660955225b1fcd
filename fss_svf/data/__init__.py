"""Datasets, their index, and the episodes drawn from it."""
