"""Starts the service and its page on one machine (`serve-app run`) and stops both without losing a request.

In comes a Serve config file with the command line's choices; out come the addresses of API, page and Ray dashboard.

Files, in the order in which a start meets them: ``local`` (the start and the stop), ``imagenet`` (which weights),
``data`` (what is stored, and where), ``environment`` (Ray's environment variables), ``haproxy`` (the program that Ray
starts as HAProxy), ``haproxy_edits`` (what that program changes in Ray's HAProxy configuration), ``processes`` (the
page, signals, waiting, ending).
"""
