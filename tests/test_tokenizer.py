"""Token ids, chat templates and special tokens against transformers', and what a broken or hostile file does.

What a template can do to memory, time and what it is given is in test_sandbox.py.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import FIXTURES
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors

import train_llm
from minclipo.checkpoint import load_tokenizer
from minclipo.checkpoint.chat_template import ChatTemplate
from minclipo.checkpoint.files import read_json, write_json
from minclipo.checkpoint.tokenizer import Tokenizer, prompt_writer
from minclipo.runs.llm_config import LLMConfig
from minclipo.tasks.sums import SumProblem, check_outcome
from minclipo.toy import toy_tokenizer
from minclipo.verifier import verify

PARITY, REAL = FIXTURES / "parity", FIXTURES / "tokenizers"
CHECKPOINTS = sorted(path.name for path in PARITY.iterdir() if path.name != "malformed")
MESSAGES = [{"role": "user", "content": "2 + 2?"}]
everywhere = pytest.mark.parametrize("name", CHECKPOINTS)


def copy_of(name: str, directory):
    """A copy of a fixture's text files to change, in `directory`."""
    for path in (PARITY / name).iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "reference.json":
            shutil.copy(path, directory)
    return directory


def update(path, **changes):
    """Change keys of a JSON file; the value "absent" removes the key."""
    value = (read_json(path) if path.exists() else {}) | changes
    write_json(path, {key: item for key, item in value.items() if item != "absent"})


def render(template: str, messages=MESSAGES, **variables) -> str:
    return ChatTemplate(template, "here/tokenizer_config.json", {"bos_token": "<s>"}).render(messages, **variables)


@everywhere
def test_token_ids_equal_transformers(name):
    """Catches: a bos token added or forgotten, a normalizer left out."""
    tokenizer = load_tokenizer(PARITY / name)
    for case in read_json(PARITY / name / "reference.json")["tokenizer"]:
        assert tokenizer.encode(case["text"], add_special_tokens=True) == case["ids"]
        assert tokenizer.encode(case["text"]) == case["ids_no_special"]
        assert tokenizer.encode_batch([case["text"]]) == [case["ids_no_special"]]


@everywhere
def test_decoded_texts_equal_transformers(name):
    """Catches: tokens missing from the text that a verifier reads, special tokens that are not marked as such."""
    tokenizer = load_tokenizer(PARITY / name)
    for case in read_json(PARITY / name / "reference.json")["tokenizer"]:
        assert tokenizer.decode_batch([case["ids_no_special"]]) == [case["decoded"]]
        assert tokenizer.tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


@everywhere
def test_chats_equal_transformers(name):
    """Catches: another template than the default one, blank lines that trim_blocks removes, a missing bos_token."""
    tokenizer = load_tokenizer(PARITY / name)
    for case in read_json(PARITY / name / "reference.json")["chat"]:
        options = dict(add_generation_prompt=case["add_generation_prompt"], **case.get("template_kwargs", {}))
        if "raises" in case:
            with pytest.raises(ValueError, match="chat_template"):
                tokenizer.chat(case["messages"], **options)
        else:
            text = tokenizer.chat(case["messages"], **options)
            assert text == case["text"] and tokenizer.encode(text) == case["ids"]


@everywhere
def test_a_saved_tokenizer_comes_back_the_same(name, tmp_path):
    """Catches: a template, special token or eos id that is read but not written."""
    before = load_tokenizer(PARITY / name)
    write_json(tmp_path / "config.json", {})
    before.save(tmp_path)
    after = load_tokenizer(tmp_path)
    assert after.settings == before.settings and after.eos_ids == before.eos_ids
    assert after.chat_template.special_tokens == before.chat_template.special_tokens
    assert after.chat(MESSAGES) == before.chat(MESSAGES)


def test_a_template_is_saved_in_the_file_where_transformers_5_looks_first(tmp_path):
    """Catches: two templates in one directory that may come to differ."""
    load_tokenizer(PARITY / "smollm2_like_bf16").save(tmp_path)
    settings = read_json(tmp_path / "tokenizer_config.json")
    source = read_json(PARITY / "smollm2_like_bf16" / "tokenizer_config.json")
    assert (tmp_path / "chat_template.jinja").read_text() == source.pop("chat_template")
    assert settings == source


def test_special_tokens_are_saved_as_strings(tmp_path):
    """Catches: the object notation, whose "__type" only some readers know."""
    load_tokenizer(PARITY / "llama_sharded_fp16").save(tmp_path)
    settings = read_json(tmp_path / "tokenizer_config.json")
    assert settings["eos_token"] == "<|eot_id|>" and settings["bos_token"] == "<|begin_of_text|>"


def test_generation_config_names_all_ends(tmp_path):
    """Catches: a second eos id lost on save, so that a saved chat model does not stop."""
    load_tokenizer(PARITY / "llama_sharded_fp16").save(tmp_path)
    wanted = {"bos_token_id": 434, "pad_token_id": 439, "eos_token_id": [435, 438]}
    assert read_json(tmp_path / "generation_config.json") == wanted


def test_the_toys_tokenizer_names_its_end(tmp_path):
    """Catches: a directory whose eos other tools do not know."""
    toy_tokenizer().save(tmp_path)
    assert read_json(tmp_path / "tokenizer_config.json")["eos_token"] == "<eos>"
    assert not (tmp_path / "chat_template.jinja").exists()


def test_the_template_of_an_earlier_model_does_not_stay(tmp_path):
    """Catches: a model without template that is saved over one with a template, and then chats."""
    write_json(tmp_path / "config.json", {})
    load_tokenizer(PARITY / "smollm2_like_bf16").save(tmp_path)
    toy_tokenizer().save(tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None


def test_without_a_template_chat_says_so():
    with pytest.raises(ValueError, match="has no chat_template"):
        toy_tokenizer().chat(MESSAGES)


def test_chat_template_jinja_wins_over_tokenizer_config(tmp_path):
    """As in transformers. Catches: an old template used after the model's author corrected it."""
    (copy_of("smollm2_like_bf16", tmp_path) / "chat_template.jinja").write_text("new")
    assert load_tokenizer(tmp_path).chat(MESSAGES) == "new"


@pytest.mark.parametrize("templates", [[], [{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}]])
def test_named_templates_without_a_default_are_refused(templates, tmp_path):
    """As in transformers. Catches: a template for tools used for everything, a chat model asked in plain text."""
    copy_of("mistral_no_window", tmp_path)
    update(tmp_path / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(ValueError, match="tokenizer_config.json: no chat_template of .* is named default; copy the"):
        load_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("chosen")
    assert load_tokenizer(tmp_path).chat(MESSAGES) == "chosen"


def test_the_refusal_names_the_templates():
    with pytest.raises(ValueError, match=r"\['rag', 'tool_use'\]"):
        load_tokenizer(REAL / "templates_without_default")


@pytest.mark.parametrize("template", [3, ["x"], [{"name": "default"}], [{"name": "default", "template": 3}], {"a": 1}])
def test_a_template_of_the_wrong_type_is_refused(template, tmp_path):
    copy_of("mistral_no_window", tmp_path)
    update(tmp_path / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ValueError, match="tokenizer_config.json: chat_template"):
        load_tokenizer(tmp_path)


def test_old_directories_name_special_tokens_in_a_file_of_their_own(tmp_path):
    """As in transformers: special_tokens_map.json counts where added_tokens_decoder is absent."""
    copy_of("smollm2_like_bf16", tmp_path)
    update(
        tmp_path / "tokenizer_config.json", added_tokens_decoder="absent", bos_token="absent", chat_template="absent"
    )
    update(tmp_path / "special_tokens_map.json", bos_token={"content": "<|im_start|>", "lstrip": False})
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}!")
    assert load_tokenizer(tmp_path).chat(MESSAGES) == "<|im_start|>!"


def test_a_token_that_only_tokenizer_config_calls_special_is_special(tmp_path):
    """Catches: "<|im_end|>" of a template cut into pieces, so that the model reads another prompt."""
    copy_of("smollm2_like_bf16", tmp_path)
    tokenizer = read_json(tmp_path / "tokenizer.json")
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<|im_end|>"]
    write_json(tmp_path / "tokenizer.json", tokenizer)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("<|im_end|>") == [2] and loaded.tokenizer.decode([2], skip_special_tokens=True) == ""


def test_special_tokens_that_old_files_call_normalized_are_found_within_a_text(tmp_path):
    """As in transformers. Catches: "</s>" between two turns that the model reads as four characters."""
    tokenizer = load_tokenizer(REAL / "special_but_normalized")
    assert tokenizer.encode("a</s>b") == [3, 4, 2, 3, 5] and tokenizer.vocab_size == 39
    assert tokenizer.tokenizer.decode([1, 4, 2], skip_special_tokens=True) == "a"
    assert tokenizer.decode_batch([[4, 2, 5]]) == ["a</s>b"] and tokenizer.stop_tokens() == ["</s>"]
    write_json(tmp_path / "config.json", {})
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("a</s>b") == [3, 4, 2, 3, 5]


def test_the_rest_of_a_normalized_special_token_stays(tmp_path):
    """Catches: a mask token that no longer takes in the blank before it."""
    shutil.copytree(REAL / "special_but_normalized", tmp_path, dirs_exist_ok=True)
    content = read_json(tmp_path / "tokenizer.json")
    content["added_tokens"][2] |= {"lstrip": True, "single_word": True}
    write_json(tmp_path / "tokenizer.json", content)
    token = load_tokenizer(tmp_path).tokenizer.get_added_tokens_decoder()[2]
    assert (token.normalized, token.special, token.lstrip, token.rstrip, token.single_word) == (0, 1, 1, 0, 1)


def test_plain_text_begins_as_the_tokenizer_begins_it():
    """Catches: no bos token where tokenizer_config.json has another name for it than tokenizer.json."""
    tokenizer = load_tokenizer(REAL / "bos_of_another_name")
    text = prompt_writer(tokenizer)("a")
    assert text == "<s>a\n" and tokenizer.encode(text)[0] == 1


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_plain_text_begins_with_the_space_that_the_tokenizer_puts_before_it(scheme):
    """Catches: "<s>What" encoded without the space of "What", where only the very first word gets one (Mistral v0.3)."""
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "\n": 3, "▁": 4, "▁a": 5}
    tokenizer = FastTokenizer(models.BPE(vocabulary, [("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    own = Tokenizer(tokenizer, [1])
    ids = own.encode(prompt_writer(own)("a"))
    assert ids == own.encode("a\n", add_special_tokens=True) == [0, 2 if scheme == "never" else 5, 3]


def test_what_a_tokenizer_puts_at_the_end_does_not_open_a_text(tmp_path):
    """Also where bos and eos are one token. Catches: a prompt that begins with the end."""
    shutil.copytree(REAL / "bos_of_another_name", tmp_path, dirs_exist_ok=True)
    content, end = read_json(tmp_path / "tokenizer.json"), {"SpecialToken": {"id": "<s>", "type_id": 0}}
    for before, text in (([], "a\n"), ([end], "<s>a\n")):
        content["post_processor"]["single"] = [*before, {"Sequence": {"id": "A", "type_id": 0}}, end]
        write_json(tmp_path / "tokenizer.json", content)
        assert prompt_writer(load_tokenizer(tmp_path))("a") == text
    assert prompt_writer(toy_tokenizer())("7 =") == "7 =\n"


@pytest.mark.parametrize("between, right", [("", True), ("<|im_start|>", False), ("<|im_end|>", False), (412, False)])
def test_a_verifier_sees_all_that_the_model_wrote(between, right):
    """412 is the last row of an embedding that has more rows than there are tokens.

    Catches: 4<|im_start|>2 that is paid as 42 and shown as 42."""
    tokenizer = load_tokenizer(PARITY / "qwen2_tied_qkv_bias")
    middle = [between] if between == 412 else tokenizer.encode(between)
    ids = [tokenizer.encode(part) for part in ("\\boxed{4", "2", "}")]
    (boxed,) = tokenizer.decode_batch([ids[0] + middle + ids[1] + ids[2]])
    (bare,) = tokenizer.decode_batch([tokenizer.encode("4") + middle + ids[1]])
    assert verify(boxed, "42") is check_outcome(SumProblem("", 40, 2), bare, True) is right
    assert ("\N{REPLACEMENT CHARACTER}" if between == 412 else between) in boxed


def test_ids_without_text_leave_the_rest_of_the_text_as_it_is():
    """At the ends, in a row, alone. Catches: text that is lost beside them."""
    tokenizer, mark = load_tokenizer(PARITY / "qwen2_tied_qkv_bias"), "\N{REPLACEMENT CHARACTER}"
    a, b = tokenizer.encode("What is"), tokenizer.encode(" 12?")
    rows = [[399] + a + [400, 401] + b + [9999], [400], [], a + b]
    wanted = [f"{mark}What is{mark}{mark} 12?{mark}", mark, "", "What is 12?"]
    assert tokenizer.decode_batch(rows) == wanted


# ---- where a completion ends ----


@everywhere
def test_published_models_end_as_their_files_say(name):
    """Their templates name the same ends. Catches: an end that the template only seems to name, a bos token say."""
    ends = {"llama": [435, 438], "llama3": [435, 438], "mistral": [2], "smollm2": [2], "smollm3": [2]}
    wanted = [2] if name == "llama_untied_fp32" else ends.get(name.split("_")[0], [394])
    assert load_tokenizer(PARITY / name).eos_ids == wanted


def test_a_base_model_ends_where_its_chat_template_ends_a_turn(tmp_path):
    """Catches: a base model that goes on after its answer, and is judged by the box of the turn that it makes up."""
    tokenizer = load_tokenizer(REAL / "base_model_with_chatml")
    assert tokenizer.stop_tokens() == ["<|endoftext|>", "<|im_end|>"]
    turn = "\\boxed{12}<|im_end|>\n<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n\\boxed{6}"
    ids = tokenizer.encode(turn)
    end = next(i for i, token in enumerate(ids) if token in tokenizer.eos_ids)
    assert verify(tokenizer.decode_batch([ids[:end]])[0], "12") and not verify(tokenizer.decode_batch([ids])[0], "12")
    write_json(tmp_path / "config.json", {})
    tokenizer.save(tmp_path)
    assert read_json(tmp_path / "generation_config.json")["eos_token_id"] == [0, 2]
    assert load_tokenizer(tmp_path).eos_ids == [0, 2]


@pytest.mark.parametrize(
    "after, ends",
    [
        ("<|im_end|>\n", [0, 2]),
        (" \n<|im_end|><|im_start|>", [0, 2]),
        ("\n", [0]),
        ("", [0]),
        ("the end <|im_end|>", [0]),
        ("{{ 1 / 0 }}", [0]),
        ("<|endoftext|>", [0]),
    ],
)
@pytest.mark.parametrize("before", ["", "<|im_start|>"])
def test_only_a_token_right_after_the_message_ends_a_turn(before, after, ends, tmp_path):
    """Catches: the opening of the next turn, a token in front of the message, or a word taken for the end; a template
    that fails and takes the model with it."""
    shutil.copytree(REAL / "base_model_with_chatml", tmp_path, dirs_exist_ok=True)
    template = "{% for m in messages %}" + before + "{{ m.content }}" + after + "{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load_tokenizer(tmp_path).eos_ids == ends


@pytest.mark.parametrize(
    "template", ["<|im_start|>{{ messages[0].content }}", "<|im_start|>", "{{ raise_exception('') }}"]
)
def test_a_template_that_writes_no_reply_names_no_end(template, tmp_path):
    """Catches: whatever such a template begins with taken for the end."""
    shutil.copytree(REAL / "base_model_with_chatml", tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load_tokenizer(tmp_path).eos_ids == [0]


def test_a_tokenizer_with_a_bos_token_does_not_end_with_it():
    """Catches: the bos token, which encoding may put before any text, taken for what the template writes."""
    tokenizer = load_tokenizer(PARITY / "llama_sharded_fp16")
    assert tokenizer.encode("x", add_special_tokens=True)[0] == 434 and 434 not in tokenizer.eos_ids


def test_stop_tokens_are_an_option_and_are_said(capsys):
    """Catches: an option that nobody reads, a choice that nobody sees, an end that is counted twice."""
    checkpoint = SimpleNamespace(tokenizer=load_tokenizer(REAL / "base_model_with_chatml"))
    config = LLMConfig(model="m", data="d", stop_tokens="<|im_start|> <|im_end|>")
    assert train_llm.tokenizer_of(checkpoint, config).eos_ids == [0, 2, 1]
    printed = "a completion ends with '<|endoftext|>' or '<|im_end|>' or '<|im_start|>' (see --stop-tokens)\n"
    assert capsys.readouterr().out == printed


def test_a_stop_token_that_is_no_token_is_refused():
    """Catches: a word that the model writes as several tokens, and so would never stop at."""
    checkpoint = SimpleNamespace(tokenizer=load_tokenizer(REAL / "base_model_with_chatml"))
    config = LLMConfig(model="m", data="d", stop_tokens="<|im_end|> </answer>")
    with pytest.raises(ValueError, match="--stop-tokens: '</answer>' is no token"):
        train_llm.tokenizer_of(checkpoint, config)


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_chat_variables_are_not_the_chat(name):
    """Catches: a traceback about an argument that is given twice."""
    with pytest.raises(ValueError, match=f"--chat-variables: {name}"):
        LLMConfig(model="m", data="d", chat_variables=json.dumps({name: []}))


def test_cutting_and_padding_stored_in_tokenizer_json_are_switched_off(tmp_path):
    """Catches: long prompts cut without a word."""
    copy_of("smollm2_like_bf16", tmp_path)
    stored = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_truncation(3)
    stored.enable_padding(length=99)
    stored.save(str(tmp_path / "tokenizer.json"))
    text = "What is 12 + 30? The answer is 42."
    assert load_tokenizer(tmp_path).encode(text) == load_tokenizer(PARITY / "smollm2_like_bf16").encode(text)


def test_the_end_is_what_any_file_calls_the_end(tmp_path):
    """In the order generation_config, config, tokenizer_config. Catches: a chat model that talks on after its turn."""
    copy_of("smollm2_like_bf16", tmp_path)
    update(tmp_path / "generation_config.json", eos_token_id=[9, 5])
    update(tmp_path / "config.json", eos_token_id=[5, 7])
    assert load_tokenizer(tmp_path).eos_ids == [9, 5, 7, 2]


def test_one_file_that_names_the_end_is_enough(tmp_path):
    copy_of("smollm2_like_bf16", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    update(tmp_path / "config.json", eos_token_id="absent")
    assert load_tokenizer(tmp_path).eos_ids == [2]


def test_an_end_outside_the_vocabulary_of_tokenizer_config_does_not_count(tmp_path):
    copy_of("smollm2_like_bf16", tmp_path)
    update(tmp_path / "tokenizer_config.json", eos_token="<|elsewhere|>")
    assert load_tokenizer(tmp_path).eos_ids == [2]


def test_a_model_without_an_end_is_refused(tmp_path):
    """Catches: sampling that always runs to the longest length."""
    copy_of("smollm2_like_bf16", tmp_path)
    for name, key in (
        ("generation_config", "eos_token_id"),
        ("config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
        ("tokenizer_config", "chat_template"),
    ):
        update(tmp_path / f"{name}.json", **{key: None})
    with pytest.raises(ValueError, match="config.json: eos_token_id is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("eos", [396, -1, "2", True, 2.0, [2, None], {"id": 2}])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_that_is_no_token_is_refused(eos, file, tmp_path):
    """396 is the vocabulary's size: the first id beyond it."""
    update(copy_of("smollm2_like_bf16", tmp_path) / file, eos_token_id=eos)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{file}: eos_token_id .*no id of the vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("token", [3, ["</s>"], {"text": 3, "content": 4}])
def test_a_special_token_of_the_wrong_type_is_refused(token, tmp_path):
    update(copy_of("smollm2_like_bf16", tmp_path) / "tokenizer_config.json", pad_token=token)
    with pytest.raises(ValueError, match="tokenizer_config.json: pad_token must be a string"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<é\'&>"}]'),  # no \u003c, no \u00e9
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ bos_token }}{% endgeneration %}", "<s>"),
        ("{{ strftime_now('%%') }}", "%"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{{ tools is none }} {{ nobody }}", "True "),
        ("{{ 'yes' if enable_thinking is defined else 'no' }}", "no"),
    ],
)
def test_templates_find_the_tools_that_transformers_gives_them(template, text):
    """Catches: templates that fail, or JSON written for web pages, although the published model was trained on it."""
    assert render(template, [{"role": "user", "content": "<é'&>"}]) == text


def test_template_variables_reach_the_template():
    assert render("{{ bos_token }}{{ enable_thinking }}", enable_thinking=False) == "<s>False"


def test_keys_without_a_value_count_as_absent():
    """Catches: the word None in a prompt."""
    messages = [{"role": "assistant", "content": None}]
    assert render("{{ 'content' in messages[0] }}{{ messages[0].content }}", messages) == "False"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}{{ ''|attr('__class__')|attr('__mro__') + 'x' }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% include 'tokenizer_config.json' %}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ 'a' + nobody }}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
        "{{ nobody.name.first }}",
        "{% for m in messages %}{{ m.content }",
        "{% nonsense %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_and_broken_templates_are_stopped_by_name(template):
    """Catches: a plain Jinja environment, in which the first lines reach the operating system."""
    with pytest.raises(ValueError, match="here/tokenizer_config.json: chat_template"):
        render(template)


@pytest.mark.parametrize("messages", [[], "hello", {"role": "user", "content": "x"}, ["hello"], None])
def test_messages_of_the_wrong_shape_are_refused(messages):
    """Catches: a template that iterates over the letters of a string."""
    with pytest.raises(ValueError, match="messages must be a list"):
        render("{{ messages }}", messages)


@pytest.mark.parametrize("content", ["{", "[]", '"x"', '{"a": 1, "a": 2}', "[" * 100_000])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "config.json", "tokenizer.json"])
def test_files_that_are_not_what_they_should_be_are_refused_by_name(file, content, tmp_path):
    (copy_of("smollm2_like_bf16", tmp_path) / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{file}"):
        load_tokenizer(tmp_path)


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path):
    (copy_of("smollm2_like_bf16", tmp_path) / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="chat_template.jinja: chat_template cannot be read"):
        load_tokenizer(tmp_path)


def test_json_keeps_what_it_holds(tmp_path):
    """Catches: text written in the machine's encoding."""
    write_json(tmp_path / "x.json", {"text": "日本語 é"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == read_json(tmp_path / "x.json") == {"text": "日本語 é"}
