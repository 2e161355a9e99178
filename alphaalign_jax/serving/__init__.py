"""Serving of a reward model on this machine to runs on other machines."""
