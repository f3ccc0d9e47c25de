"""The command line: `serve-app COMMAND`, or `python -m serve_app COMMAND`.

One file per command. It reads the arguments, imports what the command needs and calls it.
"""
