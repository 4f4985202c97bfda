"""Agents of the deployment tasks: which LLMs to deploy, and which of them answers a query.

One file per family, each readable beside its paper.
"""
