"""Recipes: the settings of a run, read from YAML, checked completely, frozen.

May import io and errors only, and loads no slow library: a mistake in a recipe is reported at once.
Begin with schema.py (every key with default and meaning); load.py reads files and overrides, pin.py pins hub revisions.
"""
