"""What the user asked: one file a subcommand, one function named as the file."""
