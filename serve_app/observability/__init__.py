"""What the service records: totals, traces, one row per image, and feedback votes.

stats.py           totals of one ingress replica, for GET /v1/status
tracing.py         OpenTelemetry spans
prediction_log.py  one Parquet row per image
feedback_store.py  votes and the images that clients labeled
"""
