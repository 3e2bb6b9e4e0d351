"""ERA in the trainers of other libraries. Each module needs its library, and nothing of ours imports them."""
