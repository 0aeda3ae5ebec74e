"""minCLIPO: reinforcement learning with verifiable rewards, and contrast among successful rollouts, from scratch.

What flows through one training step (`Trainer.step`):

    problems ─ tasks ─▶ prompts ─ sampler ─▶ rollouts ─ verifier ─▶ right or wrong? ─▶ rewards
                                                 │                                       │
                     contrastive: how far is a right one from the others? ─▶ + contrastive rewards
                                                                                         │
        new weights ◀─ optimizer ◀─ grpo: policy loss ◀─ grpo: advantages in its group ◀─┘

Read in this order:

    trainer.py      the training step, stage by stage
    model.py        a GPT: token ids in, hidden states and logits out
    sampler.py      prompts in, rollouts out: completions with log-probs and pooled hidden states
    verifier.py     is the final answer right?
    contrastive.py  head, four contrastive losses, contrastive reward
    grpo.py         rewards to advantages; log-probs and advantages to the policy loss; KL
    logprobs.py     the log-probs of the rollouts once more, with gradient
    config.py       every option of a run
    toy.py          a small model and its textbook, on which all of this runs in minutes

Behind the doors, each with a README.md:

    tasks/          where problems come from, and how completions are judged
    extensions/     beyond GRPO and CLIPO: DAPO, prompt contrast, AdamW for bfloat16
    checkpoint/     a published model to GPT and back, with its tokenizer
    runs/           what surrounds a step: command line, loop, folder, measurements, pictures
"""
