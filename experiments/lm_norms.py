"""Where does a small language model spike, and does a norm, or QK-norm, prevent it?

Command
  ici run experiments/lm_norms.py
  ici run experiments/lm_norms.py --scale full      (an accelerator: 12 blocks of 512, BPE, 5 seeds)

Setting
  Rotten Tomatoes snippets as bytes, packed into rows of 64; a pre-LN Transformer of 6 blocks of
  width 128 (1.2 million parameters), rotary positions, GELU; Adam with a short warm-up, so that
  large learning rates spike; no norm, LayerNorm, RMSNorm, and LayerNorm with QK-norm. Attention
  and output logits are recorded at every tenth step.

Seen with --steps 250 on 2 cores of an Intel Xeon shared with other work (758 s; jax 0.10.2, flax
0.12.8). One seed, so a hint of what to look for at full scale, not a result.

  - No norm trains at 1e-3 and 3e-3 (final training loss 2.42 and 2.41 nats a byte) and diverges
    at 1e-2 (step 39) and 3e-2 (step 8). With any norm all four rates train, to 2.1-2.7.
  - Single steps of 6 to 11 nats, from about 3: RMSNorm at 1e-3 (step 39), 3e-3 (37, 99) and 1e-2
    (25), LayerNorm with QK-norm at 1e-2 (26); LayerNorm alone none. All recover at once. They
    come before step 128, from which on the table's rule judges: the loss curves show them, not
    the table.
  - LayerNorm with QK-norm at 1e-3 learns fastest by far: 2.37 on validation data at step 100,
    where the others are at 2.97 or more, and 2.09 at the end. At higher rates it is no better
    than them.
  - The residual stream moves: at 3e-3 inputs of the norms shift by 70 to 110 standard deviations
    of step 0 (at 3e-2 by 10,000), since σ at step 0 is small; what leaves the norms by 0.5 to 1.
    Without a norm most inputs shift by 1 to 2, those of the last block by 8 to 60.
"""

import dataclasses

import ici
from ici.data import ReviewText
from ici.models import TransformerConfig

experiment = ici.Experiment(
    name="lm_norms",
    data=ReviewText(tokenizer="bytes", sequence_length=64),
    model=TransformerConfig(width=128, heads=4),
    norm=("none", "layer", "rms", "layer+qk"),
    depth=6,
    optimizer="adamw",
    lr=(1e-3, 3e-3, 1e-2, 3e-2),
    warmup_steps=10,
    beta2=0.95,
    seed=0,
    steps=150,
    batch_size=16,
    probe=ici.Probe(stats=("moments", "updates", "attention", "output_logits"), every=10),
    reference_size=32,
    reference_every=50,
    eval_every=50,
    eval_size=256,
    target_loss=2.5,
)
scales = {
    "full": dataclasses.replace(
        experiment,
        name="lm_norms_full",
        data=ReviewText(source="all", tokenizer="bpe", vocab_size=8192, sequence_length=256),
        model=TransformerConfig(width=512, heads=8, dtype="bfloat16"),
        depth=12,
        lr=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        warmup_steps=100,
        seed=(0, 1, 2, 3, 4),
        steps=10_000,
        batch_size=64,
        schedule="cosine",
        clip_norm=1.0,
        reference_every=500,
        eval_every=250,
        eval_size=None,
        target_loss=3.5,
    )
}
