"""Deploying a Serve config file so that it is live, or as it was before. ``python -m serve_app.deploy``."""
