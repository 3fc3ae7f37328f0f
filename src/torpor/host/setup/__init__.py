"""Prepares a machine: everything Torpor needs on a fresh Debian, made here or fetched by apt, and found again."""
