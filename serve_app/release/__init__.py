"""Bring a Serve config file to a running Ray cluster, or restore the config that ran before.

In comes a config file; out come progress lines and a cluster that serves the new config or the previous one.
Files in the order a config meets them: ``deploy`` (the whole command), ``serve_config`` (read and check),
``plan`` (dry run), ``compare`` (refuse worse weights), ``rollout`` (apply and wait), ``smoke`` (test requests).
"""
