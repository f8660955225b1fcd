"""One module a plot. Each takes numbers with the looks of their rows and returns a Plot."""
