"""Agents of LLMServe-v0: whom to dispatch where, and what the fleet hosts.

Each rule comes twice: it learns what users keep, or (``known-``) is told.
"""
