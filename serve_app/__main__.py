"""`python -m serve_app` is the same as `serve-app`."""

from __future__ import annotations

from serve_app.cli.main import main

if __name__ == "__main__":
    main()
