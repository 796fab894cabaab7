"""Environments: what happens after an action. Heavy ones import their packages where they are used."""
