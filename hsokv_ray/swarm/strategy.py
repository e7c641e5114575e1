"""What the swarm searches over when it trains the key-value transformer: one training recipe is one strategy."""

from hsokv_ray.swarm.space import Choice, Float, Int, LogFloat, Space

KV_SPACE = Space(
    {
        "optimizer": Choice(("adamw", "sgd", "rmsprop")),
        "learning_rate": LogFloat(1e-5, 1e-2),
        "weight_decay": LogFloat(1e-6, 1e-1),
        "schedule": Choice(("constant", "linear", "cosine")),
        "batch_size": Choice((8, 16, 32, 64)),
        "memory_top_k": Int(1, 16),
        "write_policy": Choice(("always", "surprise", "novelty")),
        "gate_init": Float(-3.0, 3.0),
    }
)
"""Settings of a learner of `TransformerWithKV`; `gate_init` is the bias of the gate's last layer."""
