"""Token ids, chat templates and special tokens against transformers', and what a broken or hostile file does."""

import json
import shutil

import pytest
from conftest import FIXTURES
from tokenizers import Tokenizer as FastTokenizer

from minclipo.checkpoint import load_tokenizer
from minclipo.checkpoint.chat_template import ChatTemplate
from minclipo.checkpoint.files import read_json, write_json
from minclipo.toy import toy_tokenizer

PARITY = FIXTURES / "parity"
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
    """Catches: special tokens in the text that a verifier reads, or ordinary ones missing from it."""
    tokenizer = load_tokenizer(PARITY / name)
    for case in read_json(PARITY / name / "reference.json")["tokenizer"]:
        assert tokenizer.decode_batch([case["ids"]]) == [case["decoded_skip_special"]]
        assert tokenizer.tokenizer.decode(case["ids_no_special"], skip_special_tokens=False) == case["decoded"]


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


def test_named_templates_without_a_default_are_no_template(tmp_path):
    """Catches: a template for tools used for everything."""
    copy_of("mistral_no_window", tmp_path)
    update(tmp_path / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}])
    assert load_tokenizer(tmp_path).chat_template is None


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


def test_a_token_that_only_tokenizer_config_calls_special_is_left_out_when_decoding(tmp_path):
    """Catches: "</s>" at the end of every completion that a verifier reads."""
    copy_of("smollm2_like_bf16", tmp_path)
    tokenizer = read_json(tmp_path / "tokenizer.json")
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<|im_end|>"]
    write_json(tmp_path / "tokenizer.json", tokenizer)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("<|im_end|>") == [2] and loaded.decode_batch([[2]]) == [""]


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
