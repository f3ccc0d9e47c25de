"""Starts everything on one machine: Ray's environment, HAProxy, Ray Serve and the page."""
