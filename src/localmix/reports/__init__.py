"""Measurements of networks: cost, comparison, explanation. Imported by nothing below the command line."""
