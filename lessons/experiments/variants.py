"""What is trained in each experiment: a list of variants, each of them a few settings besides the toy's own."""

from dataclasses import dataclass, field

from minclipo.contrastive import LOSSES
from minclipo.runs.recipes import ALGORITHMS, METHODS, NAMES, TOY

CLIPO, CLIPO_PAPER, ORACLE = METHODS["clipo"], METHODS["clipo_paper"], METHODS["oracle"]
NO_STD = dict(advantage_scale="none")
BRIEF = 60  # training steps where there are many variants; the comparison of the algorithms takes as many as the toy


@dataclass(frozen=True)
class Variant:
    """One row of a table. Runs that two experiments share are made once: textbook, steps and name identify them."""

    name: str
    training: dict = field(default_factory=dict)  # options of TrainConfig
    textbook: str = "toy"
    steps: int = BRIEF  # 0: the model as pretraining left it
    trainer: str = "rewards"  # a key of run.TRAINERS: what becomes of the contrast
    against: str = "GRPO"  # name of the variant that its paired differences are taken from

    @property
    def folder(self) -> str:
        """Where its runs are kept."""
        plain = "".join(letter if letter.isalnum() or letter in "-.+" else "_" for letter in self.name)
        return f"{self.textbook}-{self.steps}/{plain}"


def algorithms() -> list[Variant]:
    """Every algorithm with and without the contrastive reward, and what an oracle makes of GRPO."""
    variants = []
    for name, label in NAMES.items():
        settings = dict(steps=TOY["steps"], against=label)
        variants.append(Variant(label, ALGORITHMS[name], **settings))
        variants.append(Variant(f"{label} + CLIPO", ALGORITHMS[name] | CLIPO, **settings))
    return [*variants, Variant("oracle", ORACLE, steps=TOY["steps"])]


def gspo_clip() -> list[Variant]:
    """GSPO with a hundred times its paper's clip range; an idea from after GSPO's first runs."""
    wide = ALGORITHMS["gspo"] | dict(clip_low=0.03, clip_high=0.04)
    settings = dict(steps=TOY["steps"], against="GSPO, wide clip")
    return [Variant("GSPO, wide clip", wide, **settings), Variant("GSPO, wide clip + CLIPO", wide | CLIPO, **settings)]


def ingredients() -> list[Variant]:
    """CLIPO with one thing changed at a time."""

    def changed(name: str, **settings) -> Variant:
        return Variant(f"CLIPO, {name}", CLIPO | settings)

    rows = 512  # in every step, however they are grouped
    sizes = [(size, dict(group_size=size, prompts_per_step=rows // size)) for size in (4, 8, 32)]
    return [
        Variant("GRPO"),
        Variant("CLIPO", CLIPO),
        Variant("oracle", ORACLE),
        *(changed(f"loss {loss}", contrastive_loss=loss) for loss in LOSSES if loss != "soft_nn"),
        *(changed(f"level {level}", contrastive_level=level) for level in ("group", "batch")),
        changed("not centred", contrastive_center=False),
        *(changed(f"temperature {value}", contrastive_temperature=value) for value in (0.05, 0.2, 2.0)),
        *(changed(f"weight {value}", contrastive_weight=value) for value in (0.001, 0.01, 0.3, 1.0)),
        changed("head mlp", head_kind="mlp"),
        changed("no head", head_kind="none"),
        changed("head frozen", head_learning_rate=0.0),
        changed("head warm-up 10", head_warmup_steps=10),
        changed("floor -0.1", contrastive_floor=-0.1),
        *(
            variant
            for size, settings in sizes
            for variant in (
                Variant(f"GRPO, group of {size}", settings),
                Variant(f"CLIPO, group of {size}", CLIPO | settings, against=f"GRPO, group of {size}"),
            )
        ),
        *(
            Variant(f"as a gradient, weight {value}", dict(contrastive_weight=value), trainer="gradient")
            for value in (0.1, 1.0)
        ),
    ]


GROUP = dict(contrastive_level="group")
FRONTIER = {
    "GRPO": {},
    "GRPO, no std": NO_STD,
    "CLIPO": CLIPO,
    "CLIPO, weight 0.02": CLIPO | dict(contrastive_weight=0.02),
    "CLIPO, no std": CLIPO | NO_STD,
    "CLIPO, weight 0.02, no std": CLIPO | dict(contrastive_weight=0.02) | NO_STD,
    "CLIPO, std + 0.1": CLIPO | dict(advantage_epsilon=0.1),
    "CLIPO, group level, weight 0.5": CLIPO | GROUP | dict(contrastive_weight=0.5),
    "CLIPO, group level, weight 2, floor -2": CLIPO | GROUP | dict(contrastive_weight=2.0, contrastive_floor=-2.0),
    "CLIPO, paper's setting, no warm-up": CLIPO_PAPER,
    "prompt contrast": dict(prompt_contrast_weight=0.2),
    "prompt contrast, no std": dict(prompt_contrast_weight=0.2) | NO_STD,
    "CLIPO + prompt contrast": dict(contrastive_weight=0.05, prompt_contrast_weight=0.5),
    "CLIPO + prompt contrast, no std": dict(contrastive_weight=0.05, prompt_contrast_weight=0.5) | NO_STD,
    "oracle": ORACLE,
}


def frontier() -> list[Variant]:
    """Who removes made-up steps, and who spreads a false step that most solutions share?"""
    return [
        variant
        for textbook in ("toy", "shared70")
        for variant in (
            *(Variant(name, settings, textbook) for name, settings in FRONTIER.items()),
            Variant("log-prob", {}, textbook, trainer="log_prob"),
        )
    ]


def prompt_contrast() -> list[Variant]:
    """The rows of the frontier that our own extension is compared with, for more seeds."""
    names = ("GRPO", "GRPO, no std", "CLIPO", "oracle")
    return [variant for variant in frontier() if variant.name in names or "prompt contrast" in variant.name]


def grpo_and_clipo(*textbooks: str) -> list[Variant]:
    return [Variant(name, settings, book) for book in textbooks for name, settings in (("GRPO", {}), ("CLIPO", CLIPO))]


def diversity() -> list[Variant]:
    """Two ways of writing the steps, both right."""
    names = ("GRPO", "CLIPO", "CLIPO, weight 0.02, no std", "prompt contrast", "oracle")
    return [Variant(name, FRONTIER[name], "two_ways") for name in names]


def generalisation() -> list[Variant]:
    return [Variant(name, FRONTIER[name], "lengths") for name in ("GRPO", "CLIPO", "prompt contrast", "oracle")]


def blindness() -> list[Variant]:
    """The outcome reward sees more and more of the made-up operands: what is left for the contrast to do?"""
    names, steps = ("GRPO", "CLIPO", "prompt contrast", "oracle"), TOY["steps"]
    books = ("toy", "believed10", "believed20", "believed50", "believed100")
    return [Variant(name, FRONTIER[name], book, steps) for book in books for name in names]


def longer() -> list[Variant]:
    """Three times the training: where the outcome sees a little of what is made up, should GRPO alone get there?"""
    return [Variant("GRPO", {}, book, 3 * TOY["steps"]) for book in ("toy", "believed20")]


def fresh_seeds() -> list[Variant]:
    """The default toy, for seeds on which nothing was chosen."""
    return [Variant(name, FRONTIER[name], steps=TOY["steps"]) for name in ("GRPO", "CLIPO")]


def lengths() -> list[Variant]:
    """GRPO alone on chains of several lengths, where it had once removed made-up steps: is the outcome blind there?"""
    return [Variant("GRPO", textbook="lengths")]


def learnt() -> list[Variant]:
    """The same with half as much pretraining again: for seeds whose accuracy is low after pretraining."""
    return [Variant(name, FRONTIER[name], "toy3000", TOY["steps"]) for name in ("GRPO", "CLIPO")]


def wider() -> list[Variant]:
    """A model of twice the width."""
    return [Variant(name, FRONTIER[name], "wide", TOY["steps"]) for name in ("GRPO", "CLIPO")]


def patience() -> list[Variant]:
    """Three times the training, for the five fresh seeds on which CLIPO removed least. Its rate was still falling there
    at the last step. So, we predict, it ends below 0.04 on the four of them that training does not harm."""
    return [Variant(name, FRONTIER[name], steps=3 * TOY["steps"]) for name in ("GRPO", "CLIPO")]


def learning_rates() -> list[Variant]:
    """Half and twice the toy's learning rate: does either method owe its result to it?"""
    variants = []
    for share, label in ((1, ""), (0.5, ", half the learning rate"), (2, ", twice the learning rate")):
        rate = {} if share == 1 else dict(learning_rate=share * TOY["learning_rate"])
        variants.append(Variant(f"GRPO{label}", rate, steps=TOY["steps"], against=f"GRPO{label}"))
        variants.append(Variant(f"CLIPO{label}", CLIPO | rate, steps=TOY["steps"], against=f"GRPO{label}"))
    return variants


LOG_PROB = dict(trainer="log_prob", against="CLIPO")


def log_prob() -> list[Variant]:
    """The simplest reward that tells made-up steps apart (lesson 7): an unlikely rollout pays. Twenty fresh seeds."""
    return [*fresh_seeds(), Variant("log-prob", steps=TOY["steps"], **LOG_PROB)]


def log_prob_books() -> list[Variant]:
    """The same reward where agreement has failed: a false step that many share, two ways of writing, a second answer."""
    books = {"shared30": BRIEF, "shared50": BRIEF, "shared70": BRIEF, "two_ways": BRIEF, "believed50": TOY["steps"]}
    return [
        variant
        for book, steps in books.items()
        for variant in (
            *(Variant(name, FRONTIER[name], book, steps) for name in ("GRPO", "CLIPO")),
            Variant("log-prob", {}, book, steps, **LOG_PROB),
        )
    ]


def remedies() -> list[Variant]:
    """What might make the toy more reliable."""
    settings = {
        "CLIPO, half the learning rate": CLIPO | dict(learning_rate=TOY["learning_rate"] / 2),
        "CLIPO, KL 0.01": CLIPO | dict(kl_weight=0.01),
        "CLIPO, no std": FRONTIER["CLIPO, no std"],
        "prompt contrast": FRONTIER["prompt contrast"],
    }
    return fresh_seeds() + [Variant(name, training, steps=TOY["steps"]) for name, training in settings.items()]


def beginning(variants: list[Variant]) -> list[Variant]:
    """The variants, and before those of each textbook the model that they start from."""
    books = dict.fromkeys(variant.textbook for variant in variants)
    starts = [Variant("after pretraining", textbook=book, steps=0) for book in books]
    return [variant for begin in starts for variant in (begin, *(v for v in variants if v.textbook == begin.textbook))]


EXPERIMENTS = {
    "algorithms": algorithms,
    "gspo_clip": gspo_clip,
    "ingredients": ingredients,
    "frontier": frontier,
    "prompt_contrast": prompt_contrast,
    "shared_step": lambda: grpo_and_clipo("shared10", "shared30", "shared50", "shared70", "shared90"),
    "made_up": lambda: grpo_and_clipo("made_up05", "toy", "made_up50"),
    "few_correct": lambda: grpo_and_clipo("weak"),
    "two_ways": diversity,
    "generalisation": generalisation,
    "blindness": blindness,
    "longer": longer,
    "fresh_seeds": fresh_seeds,
    "lengths": lengths,
    "wider": wider,
    "learning_rates": learning_rates,
    "learnt": learnt,
    "patience": patience,
    "log_prob": log_prob,
    "log_prob_books": log_prob_books,
    "remedies": remedies,
}
