"""minCLIPO: reinforcement learning with verifiable rewards, and contrast among successful rollouts, from scratch.

Read in this order; each file is one stop of the data on its way through a training step:

    trainer.py      the step itself: sample, verify, contrast, advantages, update
    model.py        a GPT: token ids in, hidden states and logits out
    sampler.py      prompts in, rollouts out: completions with log-probs and pooled hidden states
    verifier.py     is the final answer right?
    contrastive.py  how far is a right rollout from the other right ones? head, four losses, reward
    grpo.py         rewards to advantages, advantages to the policy loss, KL
    logprobs.py     the log-probs of the rollouts once more, with gradient
    config.py       every option of a run
    toy.py          a task and a small model on which all of it runs in minutes

Behind the doors, each with a README.md:

    tasks/          where problems come from, and how completions are judged
    extensions/     beyond GRPO and CLIPO: DAPO, prompt contrast, AdamW for bfloat16
    checkpoint/     a published model to GPT and back, with its tokenizer
    runs/           what surrounds a step: command line, loop, folder, measurements, pictures
"""
