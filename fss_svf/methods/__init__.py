"""Few-shot segmentation methods: one file a method, over the shared blocks of blocks.py."""
