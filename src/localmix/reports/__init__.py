"""Measurements of networks: cost, comparison, speed, explanation. Imported by nothing below the command line."""
