"""Seeded protocol bugs, and what catches them: the test of the tests."""
