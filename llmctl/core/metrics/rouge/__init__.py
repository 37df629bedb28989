"""ROUGE: how much of the references' words a text has, and the reverse."""
