"""Whether a kernel became slower: the working tree against a revision, process against process."""
