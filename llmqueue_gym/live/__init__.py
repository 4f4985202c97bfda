"""A policy in a gateway: it chooses for live requests, learns from them, writes propensities."""
