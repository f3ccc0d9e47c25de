"""Work on many images that nobody waits for: batch prediction over folders, zips and buckets, on Ray Data.

batch_predict.py  the command: flags, progress, summary
pipeline.py       the stages on Ray Data; the only file here that knows Ray
stages.py         what one worker does with one shard: read, decode, classify, write
output.py         the folder of results: manifest, listing, parts; what makes a stopped run go on
sources.py        where images come from: folder, glob, zip, bucket

The same over HTTP:

routes.py         /v1/jobs: submit, look, cancel, take the results
upload.py         a body on its way to disk; archive.py refuses zips that are no honest ones
store.py          the folder of jobs: what was asked, how far it is, how it ended
supervisor.py     works the folder off by running the command
results.py        parts of results -> JSON, JSON lines, CSV, Parquet

etl.py            prediction log -> days and hourly summaries, on DuckDB
"""
