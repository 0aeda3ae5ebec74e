"""From a file, or the name of a built-in task, to a task whose prompts this model can read."""

import math
import re
from collections.abc import Iterator

from tqdm import tqdm

from minclipo.checkpoint import Tokenizer
from minclipo.checkpoint.hub import dataset_files
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.checkpoint.tokenizer_limits import LONGEST_TOKEN
from minclipo.tasks import Task
from minclipo.tasks.data_files import without_commands
from minclipo.tasks.own import is_own, own_task
from minclipo.tasks.stories import stories_task
from minclipo.tasks.sums import sums_task
from minclipo.tasks.word_problems import (
    RawProblem,
    WordProblem,
    is_prose,
    read_problems,
    word_problem_task,
)
from minclipo.toy import TASK as CHAIN_TASK
from minclipo.verifier import is_verifiable

BUILT_IN = ("sums", "stories", "chain")  # tasks that need no file
AT_ONCE = 10**6  # characters of prompts to encode: the tokenizers library keeps 100 bytes for each token
CONTROL = (
    "hold control tokens of the model, such as an end of turn, in their questions: the model reads them as such, and "
    "a question may pretend to be an answer"
)
HOW = "An answer should be short, or end in #### ANSWER or \\boxed{ANSWER}; see --answer-field"


def brings_evaluation(source: str) -> bool:
    """Does the task of this name make its problems itself, those of an evaluation, too?"""
    return source in BUILT_IN or is_own(source)


def make_task(source: str, config, tokenizer: Tokenizer, limit: int) -> Task:
    """The task that --data or --eval-data names, without prompts of more than `limit` tokens; says what is left out.

    config: the options of train_llm.py that say what is asked for and how it is written.
    """
    option = "--max-prompt-tokens" if limit == config.max_prompt_tokens else "--max-new-tokens"
    if brings_evaluation(source):
        return task_without_file(source, config, tokenizer, limit, option)
    raw = read_problems(dataset_files(source), config.question_field, config.answer_field)
    hopeless = {truth for truth in {problem.truth for problem in raw} if not is_verifiable(truth)}
    left_out = [problem for problem in raw if problem.truth in hopeless]
    if len(left_out) == len(raw):
        raise ValueError(
            f"{source}: no completion can agree with any of its answers, such as {left_out[0].place}. {HOW}"
        )
    tell(left_out, len(raw), "are left out, because no completion can agree with their answers")
    raw = [problem for problem in raw if problem.truth not in hopeless]
    prose = [problem for problem in raw if is_prose(problem.truth)]
    tell(prose, len(raw), f"have a whole sentence as the answer, to be repeated word for word. {HOW}")
    chats = [problem for problem in raw if not isinstance(problem.question, str)]
    tell(chats, len(raw), "are chats, asked as they are, without --system-prompt and --prompt-suffix")
    tell(with_control_tokens(raw, tokenizer), len(raw), CONTROL)
    problems = write_prompts(raw, config, tokenizer)
    lengths = prompt_lengths([problem.place for problem in raw], [p.prompt for p in problems], tokenizer, limit)
    kept = [problem for problem, length in zip(problems, lengths) if length <= limit]
    if not kept:
        raise ValueError(f"{source}: every prompt is longer than {limit} tokens; see {option}")
    long = len(problems) - len(kept)
    say_safely(f"{source}: {len(kept)} problems" + (f", {long} left out as too long (see {option})" if long else ""))
    return word_problem_task(kept)


def task_without_file(source: str, config, tokenizer: Tokenizer, limit: int, option: str) -> Task:
    """A built-in task, or one of the user's own, whose first problems are looked at."""
    write = prompt_writer(tokenizer, system_prompt=config.system_prompt, variables=config.template_variables())
    built_in = {"sums": sums_task, "stories": stories_task, "chain": lambda write: CHAIN_TASK}
    task = own_task(source, write) if is_own(source) else built_in[source](write)
    looks = {name: [task.draw(f"{name} 0", i).prompt for i in range(100)] for name in ("training", "evaluation")}
    if max(prompt_lengths([source] * 200, sum(looks.values(), []), tokenizer, limit)) > limit:
        raise ValueError(f"{source}: its prompts are longer than {limit} tokens; see {option}")
    shared = len(set(looks["training"]) & set(looks["evaluation"]))
    if shared and is_own(source):
        print(
            f"{source}: {shared} of its first 100 training problems are evaluation problems, too: they are not held out"
        )
    return task


def tell(problems: list[RawProblem], of: int, what: str) -> None:
    if problems:
        say_safely(f"{len(problems)} of {of} problems {what} (the first: {problems[0].place})")


def say_safely(text: str) -> None:
    print(without_commands(text))  # a stranger may have named the file


def with_control_tokens(raw: list[RawProblem], tokenizer: Tokenizer) -> list[RawProblem]:
    """Problems whose question holds a special token by name. They stay: transformers encodes them in the same way."""
    found = re.compile("|".join(map(re.escape, tokenizer.control_tokens())) or "(?!)")
    return [problem for problem in raw if found.search(problem.text())]


def write_prompts(raw: list[RawProblem], config, tokenizer: Tokenizer) -> list[WordProblem]:
    """Each question as the model reads it. A chat goes through the template as it is: it has its own instructions."""
    variables, problems = config.template_variables(), []
    write = prompt_writer(
        tokenizer, suffix=config.prompt_suffix, system_prompt=config.system_prompt, variables=variables
    )
    for place, question, truth in tqdm(raw, desc="prompts", delay=3, leave=False, disable=None):
        is_text = isinstance(question, str)
        try:
            prompt = write(question) if is_text else tokenizer.chat(question, **variables)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        problems.append(WordProblem(prompt, question if is_text else question[-1]["content"], truth))
    return problems


def prompt_lengths(places: list[str], prompts: list[str], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Tokens per prompt; infinitely many for one that is too long to be tried. ValueError as in `encoded_lengths`.

    No token is longer than LONGEST_TOKEN, and encoding a text of 10 MB takes minutes.
    """
    most = min(LONGEST_TOKEN * limit, tokenizer.most_bytes)
    short = [index for index, prompt in enumerate(prompts) if len(prompt.encode(errors="replace")) <= most]
    lengths = [math.inf] * len(prompts)
    for part in tqdm(list(batched(short, prompts)), desc="lengths of prompts", delay=3, leave=False, disable=None):
        found = encoded_lengths([places[index] for index in part], [prompts[index] for index in part], tokenizer)
        for index, length in zip(part, found):
            lengths[index] = length
    return lengths


def batched(indices: list[int], texts: list[str]) -> Iterator[list[int]]:
    """The indices in parts whose texts have AT_ONCE characters together."""
    part, size = [], 0
    for index in indices:
        part.append(index)
        size += len(texts[index])
        if size >= AT_ONCE:
            yield part
            part, size = [], 0
    yield part


def encoded_lengths(places: list[str], prompts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens per prompt. Raises ValueError naming the first place whose prompt this tokenizer cannot write."""
    try:
        lengths = [len(ids) for ids in tokenizer.encode_batch(prompts)]
    except ValueError as error:  # the library does not say which it was
        if len(prompts) == 1:
            why = f"the model's tokenizer cannot encode {prompts[0]!r:.200}: {error.__cause__}"
            raise ValueError(f"{places[0]}: {why}") from error
        return [encoded_lengths([place], [prompt], tokenizer)[0] for place, prompt in zip(places, prompts)]
    if 0 in lengths:
        empty = lengths.index(0)
        raise ValueError(f"{places[empty]}: the model's tokenizer sees nothing in {prompts[empty]!r:.200}")
    return lengths
