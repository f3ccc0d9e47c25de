"""Measurements of the running service, alone and against others; README.md says which and how."""
