"""The queueing problem: serve a queue of queries with LLMs when unsatisfied users retry."""
