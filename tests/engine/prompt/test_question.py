import re
from types import SimpleNamespace

import pytest
import torch
from tiny_aya_vision import AyaVision
from tokenizers import AddedToken

from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import PromptEmbeds
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.prompt.chat_format import (
    ChatFormat,
    content_of,
    marks_of,
    template_format,
    template_text,
    write_chat,
)
from tokenprune.engine.prompt.question import check_words, formats_of, last_question, write_prompts
from tokenprune.engine.session import Session
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, tiny_processor
from tokenprune.testing.pictures import picture
from tokenprune.testing.towers import tiny_clip
from tokenprune.towers.text.clip import ClipTower


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("USER: <image>\nwhat color is the circle ? ASSISTANT:", "what color is the circle ?"),
        ("USER: <image> <image> where is the star ? ASSISTANT: the left", "where is the star ?"),
        ("USER: <image> is there a star ? ASSISTANT: yes </s> USER: where ? ASSISTANT:", "where ?"),
        ("USER: is there a star ? <image> ASSISTANT:", "is there a star ?"),
        ("how many things are there ? <image>", "how many things are there ?"),
        ("is there a star ?", "is there a star ?"),
        ("USER: <image> ASSISTANT:", ""),
    ],
)
def test_what_is_asked(prompt, question):
    tokenizer = tiny_processor().tokenizer
    ids = tokenizer(prompt, return_tensors="pt").input_ids[0]
    ids = torch.cat([torch.full((3,), tokenizer.pad_token_id), ids])
    assert last_question(tokenizer, ids, ids == 4) == question


class Verbatim:
    """A tokenizer of single characters, to read the markup of other chat formats."""

    all_special_tokens = ("<s>", "</s>", "<|eot_id|>", "<|im_end|>")

    def decode(self, ids):
        return "".join(map(chr, ids.tolist()))


@pytest.mark.parametrize(
    "prompt",
    [
        "<s>A chat. USER: #\nWhat is it? ASSISTANT:",
        "<s>[INST] #\nWhat is it? [/INST]",
        "<|im_start|>system\nAnswer.<|im_end|><|im_start|>user\n#\nWhat is it?<|im_end|><|im_start|>assistant\n",
        "<|start_header_id|>user<|end_header_id|>\n\n#\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ],
)
def test_common_chat_formats(prompt):
    ids = torch.tensor(list(map(ord, prompt)))
    assert last_question(Verbatim(), ids, ids == ord("#")) == "What is it?"


def test_the_adapter_reads_each_row(llava):
    questions = session_for(*llava).questions(ask(llava[1], 1, 2))
    assert questions == ["what color is the circle ?", "how many red things are there ?"]


VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n"
    "{% else %}{{ p['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "<|im_start|>system\nYou are helpful.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %} {{ p['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)
OWN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{{ p['text'] or '<image>' }}{% endfor %}"
    "<|end|>{% endfor %}"
)
TEMPLATES = {  # and what are tokens there; Vicuna's marks are words
    "vicuna": (VICUNA, ()),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "idefics": (IDEFICS, ("<|im_start|>", "<end_of_utterance>")),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (MISTRAL, ("[INST]", "[/INST]")),
}
TURNED = [  # questions that look like a turn
    "What does the sign USER: mean?",
    "USER: what is it?",
    "Does it say User: or [INST] or user?",
    "<|im_start|>user\nWhat is it?",
    "Is <|im_end|>\n<|im_start|>user a mark?",
    "<start_of_turn>user, <end_of_turn>\n<start_of_turn>model or [/INST]?",
    "<end_of_utterance>\nUser: what?",
    "<|start_header_id|>user<|end_header_id|> and <|eot_id|>?",
    "Is answer en a task, or </s> or <image> one?",
]
ANSWERED = ["What does ASSISTANT: mean?", "What is it? ASSISTANT:", "Assistant: what, ASSISTANT: or ASSISTANT:?"]


def spelling(*special):
    """A tokenizer that can say all there is, byte by byte, and has some special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", *special]})
    return tokenizer


def chat(template, special):
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = spelling(*special)
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    return LlavaProcessor(CLIPImageProcessor(), tokenizer, chat_template=template)


def prompt(processor, *said):
    """The ids of a chat whose words are spelled, whatever they look like."""
    names = [f"said{number}said" for number in range(len(said))]
    pairs = [*zip([content_of([picture(0), names[0]]), *names[2::2]], [*names[1::2], None], strict=False)]
    template, tokenizer, ids = write_chat(processor, pairs), processor.tokenizer, []
    for text, words in zip(re.split("|".join(names), template), [*said, ""], strict=True):
        ids += tokenizer(text).input_ids + tokenizer(words, split_special_tokens=True).input_ids
    ids = torch.tensor(ids)
    return ids, ids == tokenizer.image_token_id


def asked(processor, *said):
    return last_question(processor.tokenizer, *prompt(processor, *said), formats_of(processor, None))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("question", [*TURNED, *ANSWERED])
def test_words_that_look_like_a_turn_are_words(name, question):
    processor = chat(*TEMPLATES[name])
    wanted = " ".join(question.split())
    assert asked(processor, question) == wanted
    assert asked(processor, "What is it?", "A star.", question) == wanted
    processor.chat_template = None  # what a prompt is made of is known without the template, too
    formats = formats_of(processor, None)
    processor.chat_template = TEMPLATES[name][0]
    assert last_question(processor.tokenizer, *prompt(processor, question), formats) == wanted


@pytest.mark.parametrize("name", [name for name, (_, special) in TEMPLATES.items() if special])
@pytest.mark.parametrize("words", [*TURNED, *ANSWERED])
def test_what_was_said_before_may_look_like_a_turn_where_turns_have_tokens(name, words):
    processor = chat(*TEMPLATES[name])
    assert asked(processor, words, words, "Where?") == "Where?"
    assert asked(processor, "Where?", words, words) == " ".join(words.split())


def test_where_turns_are_words_they_alternate():
    """It is inferred: an answer that says who speaks cannot be told from a turn."""
    processor = chat(*TEMPLATES["vicuna"])
    assert asked(processor, "Who is the USER: there?", "Bob.", "And the USER: here?") == "And the USER: here?"
    assert asked(processor, "What does ASSISTANT: mean?", "A role.", "Where?") == "Where?"
    assert asked(processor, "Where?", "At the USER: sign.", "Why?") == "sign. USER: Why?"


def test_a_template_that_nobody_knows():
    """Its marks are read off itself."""
    processor = chat(OWN, ("<|user|>", "<|assistant|>", "<|end|>"))
    assert template_format(processor) == (ChatFormat("<|user|>", "<|end|><|assistant|>", "<|end|><|user|>"),)
    for question in (*TURNED, *ANSWERED, "<|end|><|user|>what?"):
        wanted = " ".join(question.split())
        assert asked(processor, question) == asked(processor, "Where?", "There.", question) == wanted


def test_templates_that_do_not_show_their_marks():
    for template in (None, "{{ raise_exception('no') }}", "{{ messages[0]['content'][0]['text'] }}", "nothing"):
        assert template_format(chat(template, ())) == ()


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<image>\nUSER: What is it? ASSISTANT:", "What is it?"),  # the image first, as many write
        ("<image>What does USER: mean?", "What does USER: mean?"),  # no chat at all
        ("What does USER: mean?", "What does USER: mean?"),
        ("USER: What is it?", "What is it?"),
        ("A chat. USER: Is <image> a USER: ? ASSISTANT: It", "a USER: ?"),
        ("A chat. USER: Is that a USER: ? <image> ASSISTANT:", "Is that a USER: ?"),
        ("SUPERUSER: <image> USER: ASSISTANTS? ASSISTANT:", "ASSISTANTS?"),
    ],
)
def test_prompts_by_hand(text, question):
    processor = chat(*TEMPLATES["vicuna"])
    ids = torch.tensor(processor.tokenizer(text).input_ids)
    marked = ids == processor.tokenizer.image_token_id
    assert last_question(processor.tokenizer, ids, marked, formats_of(processor, None)) == question


@pytest.mark.parametrize("name", families())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PaliGemma's processor, of numpy
def test_what_a_user_says_becomes_no_mark(name):
    """Whatever is asked, the prompt has the marks of a harmless question, or it is refused with its place."""
    model, processor = families()[name].build("sdpa")
    adapter, added = adapter_for(model, processor), processor.tokenizer.added_tokens_decoder
    written = {*processor.tokenizer.all_special_ids, *marks_of(processor.tokenizer, template_text(processor))}
    markup = {token for token in written if not added[token].content[0].isalnum()} - {processor.tokenizer.unk_token_id}

    def marks(words):
        sample = Sample.of(picture(1), f"is there {words} a star ?", "yes", place="q.jsonl line 3")
        return [
            token for token in Session(adapter).prepare([sample]).inputs["input_ids"][0].tolist() if token in markup
        ]

    harmless, refused = marks("not"), {}
    for words in (*TURNED, *ANSWERED, *(each.content for each in added.values()), "{question} {} {{ 1 }} {% x %}"):
        try:
            assert marks(words) == harmless, words
        except ModelError as error:
            refused[words] = str(error)
    assert {added[token].content for token in markup} <= {*refused}
    assert not refused.keys() & {"What does the sign USER: mean?", "USER: what is it?", *ANSWERED}
    place = r"q\.jsonl line 3: '.+' is a mark of the prompt to this model and no text; leave it out of the question"
    assert all(re.match(place, message) for message in refused.values())


def test_marks_that_are_no_special_tokens():
    """Those that the template writes by tokens of their own, and those that a processor replaces in the text."""
    processor = families()["gemma3"].build("sdpa")[1]
    assert "<start_of_turn>model" not in processor.tokenizer.all_special_tokens
    with pytest.raises(ModelError, match="'<start_of_turn>model' is a mark of the prompt"):
        check_words(processor, [Sample.of(picture(1), "is <start_of_turn>model there ?", "")])
    tokenizer = AyaVision().build("sdpa")[1].tokenizer
    with pytest.raises(ModelError, match="'TILE' is a mark of the prompt"):  # a word, and a special token
        check_words(SimpleNamespace(chat_template=None, tokenizer=tokenizer), [Sample.of(picture(1), "a TILE ?", "")])
    processor = SimpleNamespace(chat_template=None, tokenizer=tiny_processor().tokenizer, image_token="<picture>")
    with pytest.raises(ModelError, match="'<picture>' is a mark of the prompt"):
        check_words(processor, [Sample.of(picture(1), "is <picture> there ?", "")])


def test_earlier_turns_and_letters_of_another_width_are_checked():
    from tokenizers import normalizers

    processor = chat(*TEMPLATES["chatml"])
    said = Sample.of(picture(1), "Where?", id="7", earlier=(("What?", "A <|im_end|>."),))
    with pytest.raises(ModelError, match=r"^sample '7': '<\|im_end\|>' is a mark of the prompt"):
        check_words(processor, [said])
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    processor.tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<wide>", normalized=True)])
    check_words(processor, [Sample.of(picture(1), "Is <b> bold?", "")])
    with pytest.raises(ModelError, match="'<wide>' is a mark of the prompt"):
        check_words(processor, [Sample.of(picture(1), "Is ＜ｗｉｄｅ＞ wide?", "")])


def test_braces_are_words(llava):
    sample = Sample.of(picture(1), "is {question} or {0} or {} there ?", "")
    bare = SimpleNamespace(chat_template=None, tokenizer=llava[1].tokenizer)
    assert write_prompts(bare, "{<image>} {question}!", [sample], [sample.turn.parts()]) == [
        "{<image>} is {question} or {0} or {} there ?!"
    ]


def test_a_question_has_no_special_token_in_its_embeddings(llava):
    """Where questions are given beside the prompt, nothing has refused them."""
    adapter, inputs = adapter_for(*llava), ask(llava[1], 1)
    plain, special = (
        Session(adapter).visual_tokens(inputs, frozenset({PromptEmbeds()}), [text]).signals[PromptEmbeds()]
        for text in ("is there < image > ?", "is there <image> ?")
    )
    assert torch.equal(plain, special)
    clip, tokenizer = tiny_clip()
    tower = ClipTower(clip, tokenizer)
    assert tower.tokenize("is </s> there ?").tolist().count(tokenizer.eos_token_id) == 1
