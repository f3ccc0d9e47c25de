"""Which model variant answers: traffic split, failover, shadow, grouping of calls. Knows no Ray and no HTTP."""
