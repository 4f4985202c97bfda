"""Sources of queries, one file a data set.

Each offers what `llmqueue_gym.workloads.make_workload` needs to build a workload by name.
"""
