"""Backbones on torchvision's modules, dilated, with named stages."""
