"""ETL of the prediction log: raw rows in, one clean file per day and hourly summaries out."""
