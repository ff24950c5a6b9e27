"""Captions for folders and datasets: inputs of many kinds in, rows of several formats out, exactly once each."""
