"""Measurements of the running service and of its peers; README.md describes them."""
