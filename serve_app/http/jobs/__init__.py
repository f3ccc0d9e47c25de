"""Batch jobs over HTTP, /v1/jobs; serve_app/batch does the work.

routes.py   the routes
inputs.py   a zip or a folder of the server -> the job's input; uploads.py writes a zip to disk
heads.py    the head that a job applies
owner.py    whose job it is
quota.py    how many jobs and uploads a caller may have
errors.py   errors without the server's paths
"""
