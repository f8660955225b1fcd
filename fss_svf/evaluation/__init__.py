"""Measuring a method: protocols, integer counts, results."""
