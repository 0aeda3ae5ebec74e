"""minCLIPO: reinforcement learning with verifiable rewards, and contrastive learning on its successful rollouts, from scratch."""
