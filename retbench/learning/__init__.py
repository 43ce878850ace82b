"""Learning experiments: corpora, token files, the training loop, perplexity and the baselines that it must beat."""
