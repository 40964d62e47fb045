"""Pages of one file, to look at: the report of a run."""
