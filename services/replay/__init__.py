"""Real input: full-information and logged data driven through the loop, and what the loop earned on them."""
