"""What moves in a backbone while the method's head trains."""
