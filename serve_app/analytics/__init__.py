"""The ETL of the prediction log: raw Parquet files come in, a clean file per day and hourly summaries go out.

etl.py    checks raw files, removes duplicate rows, writes days and summaries with DuckDB
"""
