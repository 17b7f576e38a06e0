"""Recipes: their schema, reading them from YAML, and pinning their revisions."""
