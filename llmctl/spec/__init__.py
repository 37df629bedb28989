"""What a thing is: pure data and arithmetic on it, standard library only."""
