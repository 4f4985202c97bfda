"""Streaming deployment: LLMDeploy-v0 and LLMDeployStage-v0."""
