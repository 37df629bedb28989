"""Two systems judged on the same examples: what was found of each, and whether they differ."""
