"""Pretraining of a base learner and meta-training of a method, on one loop."""
