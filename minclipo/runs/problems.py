"""From a file, or the name of a built-in task, to a task whose prompts this model can read."""

from minclipo.checkpoint import Tokenizer
from minclipo.checkpoint.hub import dataset_files
from minclipo.checkpoint.tokenizer import prompt_writer
from minclipo.tasks import Task
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
    problems = write_prompts(raw, config, tokenizer)
    # No token is 1000 characters long, and encoding a text of 10 MB takes minutes.
    prompts = [problem.prompt[: 1000 * limit + 1] for problem in problems]
    lengths = prompt_lengths([problem.place for problem in raw], prompts, tokenizer)
    kept = [problem for problem, length in zip(problems, lengths) if length <= limit]
    if not kept:
        raise ValueError(f"{source}: every prompt is longer than {limit} tokens; see {option}")
    long = len(problems) - len(kept)
    print(f"{source}: {len(kept)} problems" + (f", {long} left out as too long (see {option})" if long else ""))
    return word_problem_task(kept)


def task_without_file(source: str, config, tokenizer: Tokenizer, limit: int, option: str) -> Task:
    """A built-in task, or one of the user's own, whose first problems are looked at."""
    write = prompt_writer(tokenizer, system_prompt=config.system_prompt, variables=config.template_variables())
    built_in = {"sums": sums_task, "stories": stories_task, "chain": lambda write: CHAIN_TASK}
    task = own_task(source, write) if is_own(source) else built_in[source](write)
    looks = {name: [task.draw(f"{name} 0", i).prompt for i in range(100)] for name in ("training", "evaluation")}
    if max(prompt_lengths([source] * 200, sum(looks.values(), []), tokenizer)) > limit:
        raise ValueError(f"{source}: its prompts are longer than {limit} tokens; see {option}")
    shared = len(set(looks["training"]) & set(looks["evaluation"]))
    if shared and is_own(source):
        print(
            f"{source}: {shared} of its first 100 training problems are evaluation problems, too: they are not held out"
        )
    return task


def tell(problems: list[RawProblem], of: int, what: str) -> None:
    if problems:
        print(f"{len(problems)} of {of} problems {what} (the first: {problems[0].place})")


def write_prompts(raw: list[RawProblem], config, tokenizer: Tokenizer) -> list[WordProblem]:
    """Each question as the model reads it. A chat goes through the template as it is: it has its own instructions."""
    variables, problems = config.template_variables(), []
    write = prompt_writer(
        tokenizer, suffix=config.prompt_suffix, system_prompt=config.system_prompt, variables=variables
    )
    for place, question, truth in raw:
        is_text = isinstance(question, str)
        try:
            prompt = write(question) if is_text else tokenizer.chat(question, **variables)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        problems.append(WordProblem(prompt, question if is_text else question[-1]["content"], truth))
    return problems


def prompt_lengths(places: list[str], prompts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens per prompt. Raises ValueError naming the first place whose prompt this tokenizer cannot write."""
    try:
        lengths = [len(ids) for ids in tokenizer.encode_batch(prompts)]
    except Exception as error:  # the tokenizers library raises nothing more specific, and does not say which it was
        if len(prompts) == 1:
            raise ValueError(
                f"{places[0]}: the model's tokenizer cannot encode {prompts[0]!r:.200}: {error}"
            ) from error
        return [prompt_lengths([place], [prompt], tokenizer)[0] for place, prompt in zip(places, prompts)]
    if 0 in lengths:
        empty = lengths.index(0)
        raise ValueError(f"{places[empty]}: the model's tokenizer sees nothing in {prompts[empty]!r:.200}")
    return lengths
