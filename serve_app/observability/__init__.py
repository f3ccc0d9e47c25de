"""What the service records: totals, traces, the prediction log and feedback votes."""
