"""Engines that generate rollouts, behind one protocol."""
