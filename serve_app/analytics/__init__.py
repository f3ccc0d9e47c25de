"""The ETL of the prediction log: raw Parquet files come in, a clean file per day and hourly summaries go out.

etl.py        checks raw files, removes duplicate rows, writes days and summaries with DuckDB
retention.py  deletes what is too old or too much
upkeep.py     runs the ETL beside the service, and deletes old votes
"""
