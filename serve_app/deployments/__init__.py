"""The three stages as Ray Serve deployments. Only these files, app.py and the launcher know Ray."""
