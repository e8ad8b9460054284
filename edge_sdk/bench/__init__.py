"""Latency tests on the device: numbers that hold, the conditions they hold under, and budgets that fail a build."""
