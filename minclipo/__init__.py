"""minCLIPO: reinforcement learning with verifiable rewards, and contrast among successful rollouts, from scratch."""
