"""What strangers send: limits, looks at headers before anything is decoded, and downloads from public addresses."""
