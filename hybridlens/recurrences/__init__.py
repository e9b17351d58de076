"""Recurrences as operators: no model and no hook point is in here."""
