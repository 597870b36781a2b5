"""What is kept on disk: records, leases, the index, and what has been scored."""
