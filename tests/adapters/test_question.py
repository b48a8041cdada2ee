import pytest
import torch
from tiny import ask, tiny_processor

from tokenprune.adapters.question import last_question


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
    from tokenprune.adapters.known import adapter_for

    questions = adapter_for(*llava).questions(ask(llava[1], 1, 2))
    assert questions == ["what color is the circle ?", "how many red things are there ?"]
