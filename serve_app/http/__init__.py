"""Stage 1, HTTP: a request in, images to the stages, JSON out. FastAPI; knows no Ray."""
