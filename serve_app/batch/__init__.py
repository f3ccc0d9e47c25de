"""Batch prediction: classify a folder, zip or bucket prefix of images into Parquet files, on Ray Data.

A source and its settings come in; a folder with one row per image goes out. Files in the order data meets them:

predict.py      runs one job from start to end: listing, workers, progress, summary
plan.py         settings of a job, and how many workers it gets
sources.py      reads images from a folder, glob pattern, zip or bucket
results.py      the folder of results: manifest, listing, one Parquet part per shard
dataset.py      the stages on Ray Data; the only file here that imports Ray
worker.py       what a worker does with a shard: read, decode, classify, write

Jobs over HTTP (routes: serve_app/http/jobs/routes.py) add:

zip_archive.py  refuses a zip that is hostile or too large
job_store.py    the folder of jobs: request, progress and outcome of each
job_records.py  what a job's folder says, as types
job_sweep.py    deletes old jobs
supervisor.py   runs `serve-app predict` for the jobs in that folder, one at a time
export.py       results as JSON, JSON lines, CSV or one Parquet file
"""
