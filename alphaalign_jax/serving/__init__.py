"""A reward model of this machine for runs on others."""
