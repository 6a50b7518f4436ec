"""Learned value models: a trunk or a detached head, its losses, its training, its files."""
