"""Classes that clients teach, /v1/heads, and their use by other routes; serve_app/heads fits and stores them.

routes.py       teach, read, share, roll back, delete
examples.py     add, relabel and delete examples
suggestions.py  photos of other callers, which the owner approves or rejects
export.py       download a head as ONNX or safetensors
access.py       whose head it is
requests.py     what these routes have in common
uploads.py      request body -> photos by class; photos.py has them embedded
edits.py        a change of the stored examples, then a fit
refit.py        fits again after another backbone came
use.py          what heads say about the images of a request
schemas.py      the JSON types
"""
