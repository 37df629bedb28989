"""Our metrics as `evaluate` knows them: evaluate.load takes the path of each file, evaluate.combine several."""
