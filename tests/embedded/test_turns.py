import pytest
import torch

from tokenprune.embedded.questions import QUESTION_TYPES
from tokenprune.embedded.symbols import TOKENS, describe_tokens, multi_hot, shown_tokens
from tokenprune.embedded.tokenizer import VOCABULARY
from tokenprune.embedded.train import STAGES, Stage, Trainer
from tokenprune.embedded.turns import language_loss


def _answers(trainer, visual, at, turns):
    """Logits of the answers' tokens, with the question each belongs to."""
    seen = []
    hook = trainer.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    language_loss(trainer.model, visual, at, turns)
    hook.remove()
    return seen[0], turns.block[:, 1:][turns.answers[:, 1:]]


def test_questions_of_a_sequence_are_blind_to_one_another(tmp_path):
    trainer = Trainer(tmp_path, seed=0)
    stage = Stage(steps=1, scenes=2, questions=4, rate=0.0)
    layouts, _ = trainer.draw(stage)
    turns = trainer.questions(layouts, stage)
    at = torch.arange(TOKENS).expand(2, -1)
    visual = 0.1 * torch.randn(2, TOKENS, 160)
    before, block = _answers(trainer, visual, at, turns)
    first = turns.block == 0
    turns.ids[first] = turns.ids[first].roll(3)
    after, _ = _answers(trainer, visual, at, turns)
    assert torch.equal(before[block > 0], after[block > 0])
    assert not torch.allclose(before[block == 0], after[block == 0])


def test_answers_do_not_see_themselves(tmp_path):
    trainer = Trainer(tmp_path, seed=0)
    stage = Stage(steps=1, scenes=1, questions=1, rate=0.0)
    turns = trainer.questions(trainer.draw(stage)[0], stage)
    at, visual = torch.arange(TOKENS)[None], 0.1 * torch.randn(1, TOKENS, 160)
    before, _ = _answers(trainer, visual, at, turns)
    turns.ids[0, -1] = VOCABULARY["red"]  # the closing token, only ever a target of the one before it
    after, _ = _answers(trainer, visual, at, turns)
    assert torch.equal(before, after)


def test_symbolic_tokens_name_what_is_there(tmp_path):
    layouts, hot = Trainer(tmp_path, seed=0).draw(Stage(steps=1, scenes=8, questions=0, rate=0.0))
    for layout, rows in zip(layouts, hot, strict=True):
        assert torch.equal(rows, multi_hot(describe_tokens(layout)))
        centers = rows[rows[:, VOCABULARY["thing"]] > 0]
        assert len(centers) == len(layout)
        said = {tuple(sorted(row.nonzero().flatten().tolist())) for row in centers}
        for o in layout:
            words = [o.color, o.shape, "thing", *o.region.replace("center", "").split(), *(o.letter or "").lower()]
            assert tuple(sorted(VOCABULARY[word] for word in words)) in said
        assert len(shown_tokens(rows, 0.0)) == len(layout) + 4
        assert len(shown_tokens(rows, 1.0)) == (rows[:, VOCABULARY["nothing"]] == 0).sum() + 48


def test_a_stage_resumes_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenprune.embedded.train.SAVE_EVERY", 1)
    monkeypatch.setitem(STAGES, "language", Stage(steps=3, scenes=2, questions=2, rate=1e-3))
    Trainer(tmp_path / "whole", seed=0).run("language")
    language = Trainer.language

    def killed(self, stage, step):
        if step == 3:
            raise KeyboardInterrupt
        return language(self, stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "language", killed)
        with pytest.raises(KeyboardInterrupt):
            Trainer(tmp_path / "parts", seed=0).run("language")
    Trainer(tmp_path / "parts", seed=0).run("language")
    whole, parts = (torch.load(tmp_path / kind / "language.pt", weights_only=False) for kind in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 3
    assert all(torch.equal(whole["llava"][key], parts["llava"][key]) for key in whole["llava"])
    assert len((tmp_path / "parts" / "language.jsonl").read_text().splitlines()) == 3


def test_questions_cover_all_types(tmp_path):
    trainer = Trainer(tmp_path, seed=0)
    stage = Stage(steps=1, scenes=16, questions=12, rate=0.0)
    turns = trainer.questions(trainer.draw(stage)[0], stage)
    assert {kind for kinds in turns.kinds for kind in kinds} == set(QUESTION_TYPES)
