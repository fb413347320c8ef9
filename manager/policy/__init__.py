"""Enrolments and policies in force, and the set they come from."""
