"""minCLIPO: reinforcement learning with verifiable rewards, and contrast among successful rollouts, from scratch.

What flows through one training step (`Trainer.step`):

    problems ─ task ─▶ prompts ─ sampler ─▶ rollouts ─ task, verifier ─▶ right or wrong? ─▶ rewards
                                                │                              │               │
               contrastive: how far are the right ones from each other? ◀──────┘               │
                                                └──▶ contrastive rewards ─────────────────────▶ +
                                                                                               │
    new weights ◀─ optimizer ◀─ grpo: policy loss ◀─ grpo: advantages within each group ◀──────┘
                                       ▲
                          logprobs: the rollouts once more, with gradient

Read in this order:

    trainer.py      the training step, stage by stage
    model.py        a GPT: token ids in, hidden states and logits out
    sampler.py      prompts in, rollouts out: completions, their log-probs and mean hidden states
    verifier.py     is the final answer of a word problem right? (the toy's tasks judge themselves)
    contrastive.py  head, four contrastive losses, contrastive reward
    grpo.py         rewards to advantages; log-probs and advantages to the policy loss; KL
    logprobs.py     the log-probs of the rollouts once more, with gradient
    config.py       every option of a run
    toy.py          a small model and its textbook, on which all of this runs in minutes
    chat.py         talk to a model

Behind the doors, each with a README.md:

    tasks/          where problems come from, and how completions are judged
    extensions/     beyond GRPO and CLIPO: DAPO, prompt contrast, LoRA, micro-batches, AdamW for bfloat16
    checkpoint/     a published model to GPT and back, with its tokenizer
    runs/           what surrounds a step: command line, loop, folder, measurements, pictures

`python -m minclipo` says what can be run.
"""

__version__ = "0.1.0"
