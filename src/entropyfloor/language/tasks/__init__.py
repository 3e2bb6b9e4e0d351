"""What a language model is asked: tasks made from a seed, and questions with answers from files."""
