"""Exercise 16: from an empty file.

Minutes: 240. Difficulty: hard.

Write the whole program, in PyTorch alone: a GPT, its sampler, the verifier of the toy,
GRPO's advantages and loss, CLIPO's reward, the training loop. Run the file:

    python lessons/exercises/16_from_an_empty_file.py

It checks part by part, each without the others; only the loop uses your own parts. When
all are right, it loads the careless model into your GPT and trains it with your loop: 60
steps, about a minute. More than 85% of the answers must be right then, and fewer than 10%
of the right ones may have a made-up step.

--hint FUNCTION says where the course built a part. Functions and classes of your own
beside these are welcome.

Shapes: B prompts, G rollouts per prompt, N = B G rollouts, those of a prompt side by
side; P tokens of a prompt, T of a completion; V vocabulary, D width of a state. All
prompts of a batch have one length, and this is all the padding that you are spared.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
from checking import Wrong, curve, expect, expect_true, report
from torch import Tensor

ACCURACY, RATE = 0.85, 0.1  # what the last training has to reach: above, below


class GPT(nn.Module):
    """A decoder as in Llama: RMSNorm, rotary attention, gated MLP with silu.

    Nothing has a bias. RMSNorm has 1e-5 under its root. Every block adds
    attention(norm(x)), then mlp(norm(x)); a last norm comes after the blocks. A head
    has C channels, of which c and c + C/2 turn together, by position * 10000^(-2c / C).
    The output matrix is the embedding. Parameters have the names of published
    checkpoints, so that their weights load; i is the number of a block, from 0:

        embed_tokens.weight [V, D]
        norm.weight [D]
        layers.i.input_layernorm.weight [D]
        layers.i.self_attn.{q,k,v,o}_proj.weight [D, D]
        layers.i.post_attention_layernorm.weight [D]
        layers.i.mlp.{gate,up}_proj.weight [mlp_width, D]
        layers.i.mlp.down_proj.weight [D, mlp_width]
    """

    def __init__(
        self, vocab_size: int, width: int, num_layers: int, num_heads: int, mlp_width: int
    ):
        super().__init__()
        raise NotImplementedError("Part 1, the model")

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, D] behind the last norm, of tokens [B, T]. Causal."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next word, [..., V], from hidden states [..., D]."""


def sample(
    model: GPT,
    prompts: Tensor,
    group_size: int,
    max_new_tokens: int,
    eos_id: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write G = group_size completions to each prompt.

    prompts [B, P]; returns (completions, mask, logprobs, pooled).

    completions [N, T], T = max_new_tokens: a row may go on behind its first eos_id with
    anything. mask [N, T] bool: true up to the first eos_id, which counts, and false
    behind it. logprobs [N, T]: of each token under the distribution it was drawn from.
    pooled [N, D]: the mean hidden state of a completion's own tokens, eos included, each
    at its own place, not at the one that predicts it. Temperature 0: always the likeliest
    token, with log-prob 0. No gradient. There need not be a cache.

    Use model(tokens) and model.logits(hidden) only.
    """
    raise NotImplementedError("Part 2, the sampler")


def verify(prompt: str, completion: str, finished: bool) -> bool:
    """Is the answer right?

    True if the completion's last words are # and the number that the prompt adds up to,
    and if it has ended (`finished`). prompt: "66 , -4 , +1 =", any number of operands.
    Words are separated by spaces. Any completion may come.
    """
    raise NotImplementedError("Part 3, the verifier")


def advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Each reward minus the mean of its group, by (standard deviation + 1e-6): [N].

    rewards [N]. The standard deviation is the group's, with n - 1. A group of
    equal rewards gets exactly 0, also if they are 0.9, whose mean rounds.
    """
    raise NotImplementedError("Part 4, the advantages")


def score(model: GPT, prompts: Tensor, completions: Tensor) -> Tensor:
    """Log-probs [N, T] of given completions, with gradient, at temperature 1.

    prompts [N, P], of each completion its own; completions [N, T]. Use
    model(tokens) and model.logits(hidden) only.
    """
    raise NotImplementedError("Part 5, the log-probs again")


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """GRPO's clipped loss, to be made small: the mean over the tokens of the mask.

    logprobs, old_logprobs, mask [N, T]; advantages [N]. Outside the mask there may be
    anything, NaN included.
    """
    raise NotImplementedError("Part 6, the loss")


def contrastive_rewards(
    pooled: Tensor, correct: Tensor, group_size: int, weight: float
) -> Tensor:
    """CLIPO's reward, without a head: [N].

    max(-weight * loss, -0.5) for right rollouts, 0 for wrong ones, without gradient.
    pooled [N, D]; correct [N] bool. Subtract each prompt's mean state, scale to length 1.
    The loss is the soft-NN loss with temperature 0.5: positives are the other right
    rollouts of the prompt, candidates all other rollouts of the batch. A right rollout
    without a positive gets 0.
    """
    raise NotImplementedError("Part 7, the contrast")


def train(
    model: GPT,
    draw: Callable[[], tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]],
    steps: int,
    group_size: int,
    max_new_tokens: int,
    eos_id: int,
    weight: float,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """The loop, with AdamW without weight decay, on the parts above.

    draw() gives the next prompts [B, P] and a judge; judge(completions, mask) says which
    are right, [N] bool. Rewards are 1 or 0 plus the contrastive ones; with weight 0 there
    is no contrast. Each step takes two updates on the same rollouts, clip range 0.2, a
    gradient longer than 1 scaled down to 1.
    """
    raise NotImplementedError("Part 8, the loop")


HINTS = {
    "GPT": """\
Lesson 1. For channels in the last dimension, chunk(2, -1) and torch.cat turn half against
half. unflatten(-1, (H, C)) cuts a width into heads.""",
    "sample": """\
Lesson 2. repeat_interleave copies prompts; torch.multinomial draws. A token belongs to
the completion if there is no eos before it: cumsum, without the token itself. One more
pass over prompt and completion gives the states.""",
    "verify": "Lesson 3. The prompt's words 0, 2, 4, ... are numbers; int() reads signs.",
    "advantages": "Lesson 5. Are all of a group equal to its first?",
    "score": "Lesson 2. The state at a place predicts the next token: shift by one.",
    "policy_loss": """\
Lesson 5. masked_fill before exp: 0 times NaN is NaN, in the gradient, too.""",
    "contrastive_rewards": """\
Lessons 8 and 9. logsumexp over candidates minus logsumexp over positives, with -inf in
the place of all others. Leave rollouts without a positive out before, not after.""",
    "train": "Lesson 6, and its second exercise, 06_train.py.",
}

# The checks. Reading them is allowed; from here on the package is used.

SHAPE = dict(vocab_size=13, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=4)


def packages_gpt(**changes):
    """A random model of the package; embeddings larger than usual, so that its logits
    differ."""
    from minclipo.model import GPT, GPTConfig, init_weights

    config = GPTConfig(**SHAPE | {"intermediate_size": 24} | changes)
    model = init_weights(GPT(config), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(5 if name == "embed_tokens.weight" else 1)
            if "norm" in name:  # gains that are not all 1
                weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
    return model


def check_GPT(GPT):
    theirs = packages_gpt()
    mine = GPT(13, 16, 2, 4, 24).double()
    shapes = lambda model: {
        name: tuple(w.shape) for name, w in model.state_dict().items()
    }
    found, wanted = shapes(mine), shapes(theirs)
    names = sorted(wanted.keys() - found.keys())
    expect_true(not names, f"no parameter of the name {', '.join(names[:3])}")
    names = sorted(found.keys() - wanted.keys())
    expect_true(
        not names, f"{', '.join(names[:3])}: checkpoints have no such parameter or buffer"
    )
    for name, shape in wanted.items():
        expect_true(
            found[name] == shape, f"{name}: expected {shape}, found {found[name]}"
        )
    mine.load_state_dict(theirs.state_dict())
    tokens = torch.tensor([[1, 5, 2, 12, 7, 7], [3, 0, 3, 4, 9, 11]])
    with torch.no_grad():
        one, wanted = mine(tokens[:, :1]), theirs(tokens[:, :1])
        expect(one, wanted, "lines of one word, where attention sees that word only")
        hidden, wanted = mine(tokens), theirs(tokens)
        changed = tokens.clone()
        changed[:, 5] = 8
        early = mine(changed)[:, :5]
        expect(early, hidden[:, :5], "another last word must not change earlier states")
        expect(hidden, wanted, "two lines of six words, where rotation counts")
        expect(mine.logits(hidden), theirs.logits(wanted), "the logits, by the embedding")
        bare = GPT(13, 16, 1, 2, 24).double()
        theirs = packages_gpt(num_layers=1, num_heads=2, num_kv_heads=2)
        bare.load_state_dict(theirs.state_dict())
        expect(bare(tokens), theirs(tokens), "one block of two heads")


PROMPTS = torch.tensor([[1, 5, 2], [3, 12, 4], [7, 7, 0]])  # [B, P]; eos is 6


def check_sample(sample):
    model = packages_gpt()

    def drawn(temperature, seed=0, group_size=40):
        generator = torch.Generator().manual_seed(seed)
        return sample(model, PROMPTS, group_size, 4, 6, temperature, generator)

    found = drawn(1.0)
    fit = isinstance(found, tuple) and len(found) == 4
    expect_true(fit, "expected (completions, mask, logprobs, pooled)")
    expect_rollouts(found)
    exact = expect_one_pass(model, *found)  # [120, 4, V]
    again = drawn(1.0)[0]
    expect(again, found[0], "the same seed again: the completions")
    other = drawn(1.0, 1)[0]
    expect_true(not other.equal(found[0]), "another seed: the same completions")
    probability, likeliest = exact[0, 0].exp().max(0)
    share = (drawn(1.0, 2, 2000)[0][:2000, 0] == likeliest).double().mean()
    what = "how often the likeliest first token comes in 2000 rows of one prompt"
    expect(share, probability, what, tolerance=0.05)
    cool, _, logprobs, _ = drawn(0.5)
    own = plain_pass(model, cool, 0.5)[1].gather(-1, cool[..., None])[..., 0]
    expect(logprobs[:, 0], own[:, 0], "log-probs of first tokens, temperature 0.5")
    expect_greedy(model, *drawn(0.0, group_size=2)[:3])


def plain_pass(model, completions, temperature):
    """(states [N, P + T, D], log-probs [N, T, V]) of a forward pass over all tokens."""
    rows = torch.arange(len(PROMPTS)).repeat_interleave(len(completions) // len(PROMPTS))
    with torch.no_grad():
        hidden = model(torch.cat([PROMPTS[rows], completions], 1))
        return hidden, (model.logits(hidden)[:, 2:-1] / temperature).log_softmax(-1)


def expect_rollouts(found):
    """The shapes, no gradient, and a mask that ends with the first eos."""
    names = ("completions", "mask", "logprobs", "pooled")
    for part, name, shape in zip(found, names, [(120, 4)] * 3 + [(120, 16)]):
        wrong = f"{name}: expected shape {shape}, found {tuple(part.shape)}"
        expect_true(tuple(part.shape) == shape, wrong)
        expect_true(not part.requires_grad, f"{name}: a gradient, which nobody needs")
    ends = found[0] == 6
    early = bool((ends & (torch.arange(4) < 3)).any())
    expect_true(early, "eos (6) was never drawn in 120 rows")
    wanted = ends.cumsum(1) - ends.long() == 0
    expect(found[1], wanted, "the mask: up to the first eos, which counts")


def expect_one_pass(model, completions, mask, logprobs, pooled):
    """Log-probs and states equal those of a plain pass; its log-probs [N, T, V]."""
    hidden, exact = plain_pass(model, completions, 1.0)
    own = exact.gather(-1, completions[..., None])[..., 0]  # [N, T]
    zeros = torch.zeros(int(mask.sum()))
    what = "log-probs minus those of a plain pass, temperature 1"
    expect((logprobs - own)[mask], zeros, what)
    mean = (hidden[:, 3:] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expect(pooled, mean, "pooled: the mean state of a completion's own tokens")
    return exact


def expect_greedy(model, completions, mask, logprobs):
    """Temperature 0 is what the package's sampler finds."""
    from minclipo.sampler import sample

    options = dict(temperature=0.0, eos_ids=[6], generator=None)
    wanted = sample(model, PROMPTS.tolist(), 2, 4, **options)
    width = wanted.mask.shape[1]
    expect(mask[:, :width], wanted.mask, "temperature 0: the mask")
    found, likeliest = completions[:, :width], wanted.completions
    what = "temperature 0: always the likeliest token"
    expect(found[wanted.mask], likeliest[wanted.mask], what)
    expect(logprobs[mask], torch.zeros(int(mask.sum())), "temperature 0: log-probs")


def check_verify(verify):
    for prompt, completion, finished, wanted, what in (
        ("66 , -4 , +1 =", "-4 62 +1 63 # 63", True, True, "a right solution"),
        ("66 , -4 , +1 =", "+5 62 +1 63 # 63", True, True, "steps are not looked at"),
        ("7 , +5 =", "# 12", True, True, "one operand, an answer alone"),
        ("5 , -5 =", "-5 0 # 0", True, True, "an answer of 0"),
        ("66 , -4 , +1 =", "-4 62 +1 63 # 63", False, False, "it has not ended"),
        ("66 , -4 , +1 =", "-4 62 +1 63 # 62", True, False, "a wrong answer"),
        ("66 , -4 , +1 =", "-4 62 +1 63 63", True, False, "no #"),
        ("66 , -4 , +1 =", "-4 62 +1 63 # 63 64", True, False, "a word behind it"),
        ("66 , -4 , +1 =", "# 63 -4 62", True, False, "the answer first"),
        ("66 , -4 , +1 =", "-4 62 +1 63 #", True, False, "nothing after #"),
        ("66 , -4 , +1 =", "# = 63", True, False, "a word between # and the answer"),
        ("66 , -4 , +1 =", "# #", True, False, "an answer that is no number"),
        ("66 , -4 , +1 =", "", True, False, "the empty text"),
    ):
        found = verify(prompt, completion, finished)
        expect_true(
            found == wanted,
            f"{what} ({prompt!r}, {completion!r}): expected {wanted}, found {found}",
        )


def check_advantages(advantages):
    from minclipo.grpo import group_advantages

    right_and_wrong = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = advantages(right_and_wrong, 4)
    wanted = torch.tensor([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5])
    expect(found, wanted, "one right of four, three right of four", tolerance=1e-4)
    for same in (0.0, 1.0, 0.9):
        found = advantages(torch.full((16,), same), 16)
        expect(found, torch.zeros(16), f"sixteen rewards of {same}", tolerance=0.0)
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
    found, wanted = advantages(rewards, 3), group_advantages(rewards, 3)
    expect(found, wanted, "random rewards in groups of three")


def check_score(score):
    model = packages_gpt()
    prompts = torch.tensor([[1, 5, 2], [3, 12, 4]])
    completions = torch.tensor([[6, 9, 1, 0], [8, 8, 2, 10]])
    found = score(model, prompts, completions)
    tokens = torch.cat([prompts, completions], 1)
    wanted = []
    for place in range(3, 7):  # one token at a time, from all before it
        logits = model.logits(model(tokens[:, :place])[:, -1])  # [2, 13]
        wanted.append(logits.log_softmax(-1)[[0, 1], tokens[:, place]])
    wanted = torch.stack(wanted, 1)
    expect(found, wanted, "two completions of four tokens")
    expect_true(found.requires_grad, "no gradient flows back to the model")
    weights = torch.linspace(-1, 1, 8).view(2, 4)
    weight = model.layers[0].mlp.up_proj.weight
    gradients = [
        torch.autograd.grad((weights * x).sum(), weight)[0] for x in (found, wanted)
    ]
    expect(*gradients, "its gradient at a weight of the first block")


def check_policy_loss(policy_loss):
    from minclipo.grpo import policy_loss as packages_loss

    one = torch.ones(1, 1, dtype=torch.float64)
    for ratio, advantage, wanted, what in (
        (1.0, 1.0, (-1.0, -1.0), "an unmoved good token"),
        (1.0, -1.0, (1.0, 1.0), "an unmoved bad token"),
        (2.0, 1.0, (-1.2, 0.0), "a good token at twice its probability"),
        (2.0, -1.0, (2.0, 2.0), "a bad token at twice its probability"),
        (0.5, 1.0, (-0.5, -0.5), "a good token at half its probability"),
        (0.5, -1.0, (0.8, 0.0), "a bad token at half its probability"),
    ):
        logprob = (ratio * one).log().requires_grad_()
        loss = policy_loss(
            logprob, 0 * one, advantage * one[0], torch.ones(1, 1, dtype=torch.bool), 0.2
        )
        expect_true(isinstance(loss, Tensor), f"{what}: expected a tensor, found {loss}")
        slope = torch.autograd.grad(loss, logprob)[0].item()
        expect((loss.item(), slope), wanted, f"{what}: (loss, gradient)")

    generator = torch.Generator().manual_seed(0)
    logprobs, old = -torch.rand(2, 3, 5, generator=generator).double()
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    A = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    options = dict(clip_low=0.3, clip_high=0.3)
    wanted = packages_loss(logprobs, old, A, mask, **options).loss
    found = policy_loss(logprobs, old, A, mask, 0.3)
    expect(found, wanted, "rows of 5, 2 and 3 tokens, clip 0.3: the mean over the tokens")
    leaf = logprobs.masked_fill(~mask, torch.nan).requires_grad_()
    loss = policy_loss(leaf, old, A, mask, 0.3)
    expect(loss, wanted, "the same with NaN outside the mask")
    gradient = torch.autograd.grad(loss, leaf)[0]
    expect_true(
        bool(gradient.isfinite().all()),
        "NaN outside the mask: the gradient is not finite",
    )


def check_contrastive_rewards(contrastive_rewards):
    from minclipo.contrastive import ContrastiveHead, center_by_group, contrastive_loss
    from minclipo.contrastive import contrastive_reward as packages_reward

    generator = torch.Generator().manual_seed(0)
    group = torch.arange(4).repeat_interleave(5)
    shared = 5 * torch.randn(4, 8, generator=generator)
    pooled = (shared[group] + torch.randn(20, 8, generator=generator)).double()
    correct = torch.rand(20, generator=generator) < 0.6
    correct[:5], correct[5:10] = True, False  # a prompt all right, one all wrong
    correct[10:15] = torch.tensor([True, False, False, False, False])  # one alone
    z = ContrastiveHead(8, 8, "none")(center_by_group(pooled, group))
    how = dict(loss="soft_nn", level="cross", temperature=0.5)
    loss = contrastive_loss(z, correct, group, **how).loss
    for weight in (0.1, 0.2):
        found = contrastive_rewards(pooled, correct, 5, weight)
        wanted = packages_reward(loss, correct, weight=weight)
        expect_true(isinstance(found, Tensor), f"expected a tensor, found {found!r}")
        expect_true(not found.requires_grad, "a gradient flows back")
        expect(found[~correct], 0 * found[~correct], "wrong rollouts get 0")
        expect(found[10], 0.0, "a right rollout without another one gets 0")
        expect(found, wanted, f"four prompts, five rollouts each, weight {weight}")
    found = contrastive_rewards(pooled, ~correct & correct, 5, 0.1)
    expect(found, torch.zeros(20), "nobody is right")


def check_train(train):
    """From random weights: the first word of a completion should be the last one of the
    prompt."""
    from minclipo.model import GPT, GPTConfig, init_weights

    shape = GPTConfig(vocab_size=6, hidden_size=16, num_layers=1, num_heads=2,
                      num_kv_heads=2, intermediate_size=32)  # fmt: skip
    model = init_weights(GPT(shape), torch.Generator().manual_seed(0))
    generator, shares = torch.Generator().manual_seed(1), []

    def draw():
        prompts = torch.randint(1, 6, (16, 2), generator=generator)

        def judge(completions, mask):
            wanted = prompts[:, 1].repeat_interleave(8)
            shares.append((completions[:, 0] == wanted).float().mean().item())
            return completions[:, 0] == wanted

        return prompts, judge

    train(model, draw, 40, 8, 2, 0, 0.0, 1e-2, torch.Generator().manual_seed(2))
    expect(len(shares), 40, "how often the judge was asked in 40 steps")
    final = sum(shares[-5:]) / 5
    expect_true(
        final > 0.8,
        f"copying a word: {final:.2f} right, more than 0.80 wanted; {curve(shares)}",
    )
    asked = len(shares)
    train(model, draw, 3, 8, 2, 0, 0.1, 1e-3, torch.Generator().manual_seed(2))
    expect(len(shares) - asked, 3, "with contrast: how often the judge was asked")
    finite = all(bool(weight.isfinite().all()) for weight in model.parameters())
    expect_true(finite, "with contrast: the weights are not finite")


def train_train(train, seed: int = 0):
    """The finish: the careless model in the reader's own GPT, trained by the reader's own
    program."""
    from common import pretrained, problems_of, training_steps

    from minclipo.sampler import sample
    from minclipo.toy import TASK, toy_tokenizer

    own, tokenizer = train.__globals__, toy_tokenizer()  # own: the reader's other parts
    start, eos = pretrained("careless"), tokenizer.eos_ids[0]
    model = own["GPT"](start.config.vocab_size, 64, 2, 4, 192)
    model.load_state_dict(start.state_dict())
    steps, B, G = training_steps(60), 16, 16
    accuracies, rates, numbers = [], [], iter(range(B * steps))

    def draw():
        problems = [
            TASK.draw(f"exercise 16, {seed}", number)
            for _, number in zip(range(B), numbers)
        ]
        prompts = tokenizer.encode_batch([problem.prompt for problem in problems])

        def judge(completions, mask):
            finished = ((completions == eos) & mask).any(1)
            lengths = (mask.sum(1) - finished.long()).tolist()
            texts = [row[:n] for row, n in zip(completions.tolist(), lengths)]
            texts = tokenizer.decode_batch(texts)
            rows = [problem for problem in problems for _ in range(G)]
            right = [
                own["verify"](problem.prompt, text, end)
                for problem, text, end in zip(rows, texts, finished.tolist())
            ]
            clean = [all(found) for found in TASK.steps(problems, texts, [True] * B * G)]
            correct, faithful = torch.tensor(right), torch.tensor(clean)
            accuracies.append(correct.float().mean().item())
            rates.append(1 - faithful[correct].float().mean().item())
            if len(rates) % 10 == 0:
                print(
                    f"step {len(rates):3}   accuracy {accuracies[-1]:.2f}   hallucination"
                    f" rate {rates[-1]:.2f}   {curve(rates)}",
                    flush=True,
                )
            return correct

        return torch.tensor(prompts), judge

    train(model, draw, steps, G, 12, eos, 0.1, 5e-4, torch.Generator().manual_seed(seed))
    accuracy, rate = (sum(values[-5:]) / 5 for values in (accuracies, rates))
    print(f"last five steps: accuracy {accuracy:.3f}, hallucination rate {rate:.3f}")
    start.load_state_dict(model.state_dict())  # the names are those of checkpoints
    problem = problems_of("exercise 16, shown", 1)[0]
    prompt = tokenizer.encode_batch([problem.prompt])
    ends, generator = tokenizer.eos_ids, torch.Generator().manual_seed(0)
    shown = sample(start, prompt, 3, 12, eos_ids=ends, generator=generator)
    print(problem.prompt, *tokenizer.decode_batch(shown.completion_ids()), sep="\n    ")
    if accuracy <= ACCURACY or rate >= RATE:
        raise Wrong(f"accuracy {accuracy:.3f}, hallucination rate {rate:.3f}: see above")


if __name__ == "__main__":
    report(globals())
