"""A person's own photographs: a class learnt from a few annotated examples, and segmented in others."""
