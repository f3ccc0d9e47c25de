"""Work on many images that nobody waits for: batch prediction over folders, zips and buckets, on Ray Data.

batch_predict.py  the command: flags, progress, summary
pipeline.py       the stages on Ray Data; the only file here that knows Ray
stages.py         what one worker does with one shard: read, decode, classify, write
output.py         the folder of results: manifest, listing, parts; what makes a stopped run go on
etl.py            prediction log -> days and hourly summaries, on DuckDB
sources.py        where images come from: folder, glob, zip, bucket
"""
