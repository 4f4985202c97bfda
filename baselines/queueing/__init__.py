"""Agents for the retrial queue, one file a family.

``baselines`` registers their names; each file cites its source and marks reconstructions (R).
"""
