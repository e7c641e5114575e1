"""What the swarm trains, one module per task: rare words, few-shot GLUE, Split-CIFAR-10, language models. No Ray."""
