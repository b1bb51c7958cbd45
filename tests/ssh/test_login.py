"""Logging in with a certificate; logins with keys are in test_connection.py."""
