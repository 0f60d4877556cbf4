"""Stages decide: synchronous, one file each, entered in order and left in reverse."""
