"""What is too slow or too large as plain tensor code. `functional` calls it; nothing else needs to."""
