"""Tests of `services.sessions`."""
