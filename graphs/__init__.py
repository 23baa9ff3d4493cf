"""Saved workflow graphs, one for each task a person has, and the pictures they begin with."""
