"""Pause-inference: decode, score, and sum up."""
