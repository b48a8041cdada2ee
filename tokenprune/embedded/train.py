"""Trains the embedded MLLM from seeds on a CPU: ``python -m tokenprune.embedded.train``.

Everything at once does not work at this size: the language model learns the answers' prior and nothing visual. So it is
brought up the way a real LLaVA is, from a language model that can already bind attributes and a vision tower that
already sees them:

1. ``language``: the Llama alone, on symbolic visual tokens. A token of an object is the sum of the word embeddings that
   describe it (colour, shape, region, letter); most background tokens are left out, positions stay those of the raster.
2. ``vision``: the CLIP pair (image against caption) and the projector, which learns to land on those same sums.
   Independent of 1 because both start from the same word embeddings, which these two stages leave as they are.
3. ``joint``: everything together on the real 144 visual tokens of drawn images, nothing left out.

A stage writes a checkpoint every ``SAVE_EVERY`` steps and resumes from it; the log is one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlavaForConditionalGeneration

from tokenprune.embedded.model import clip_config, llava_config
from tokenprune.embedded.questions import Question, article, sample_questions
from tokenprune.embedded.scenes import COLORS, GRID, IMAGE_SIZE, LETTERS, PATCH_SIZE, SHAPES, Layout
from tokenprune.embedded.scenes import object_tokens, render, sample_layout
from tokenprune.embedded.tokenizer import VOCABULARY, build_tokenizer

SAVE_EVERY = 100
EMBEDDING_STD = 0.1
TOKENS = GRID * GRID
PREFIX = ("<s>", "USER:")
WORD_GROUPS = {  # what the projector is asked to tell apart, and the words that say it
    "color": (*COLORS, "nothing"),
    "shape": (*SHAPES, "nothing"),
    "row": ("top", "bottom"),
    "column": ("left", "right"),
    "letter": tuple(LETTERS.lower()),
    "center": ("thing",),
}


@dataclass(frozen=True)
class Stage:
    """How long a stage runs and how: steps, scenes a step, questions a scene, peak learning rate."""

    steps: int
    scenes: int
    questions: int
    rate: float


STAGES = {
    "language": Stage(steps=2600, scenes=24, questions=12, rate=1.5e-3),
    "vision": Stage(steps=2600, scenes=32, questions=0, rate=1.5e-3),
    "joint": Stage(steps=2400, scenes=16, questions=16, rate=6e-4),
}


def describe_tokens(layout: Layout) -> list[list[str]]:
    """The words that describe each visual token: ``TOKENS`` lists, in raster order."""
    owner = object_tokens(layout)
    words: list[list[str]] = []
    for index in range(TOKENS):
        row, column = divmod(index, GRID)
        if owner[index] < 0:
            words.append(["nothing"])
            continue
        thing = layout[owner[index]]
        x, y = thing.center
        own = [thing.color, thing.shape, *thing.region.replace("center", "").split()]
        if x // PATCH_SIZE == column and y // PATCH_SIZE == row:
            own.append("thing")
        off = max(abs(column * PATCH_SIZE + PATCH_SIZE / 2 - x), abs(row * PATCH_SIZE + PATCH_SIZE / 2 - y))
        if thing.letter and off <= 7:
            own.append(thing.letter.lower())
        words.append(own)
    return words


def multi_hot(words: list[list[str]]) -> Tensor:
    """(len(words), vocabulary) float: 1 where a word describes a token. Times the embedding matrix: its symbolic token."""
    hot = torch.zeros(len(words), len(VOCABULARY))
    for index, names in enumerate(words):
        hot[index, [VOCABULARY[name] for name in names]] = 1.0
    return hot


def caption(layout: Layout, rng: random.Random) -> str:
    """An English list of the objects, in random order."""
    names = [f"{article(o.color)} {o.color} {o.shape}" + (f" with {o.letter}" if o.letter else "") for o in layout]
    rng.shuffle(names)
    return " and ".join(names)


@dataclass
class Turns:
    """Questions of a batch packed behind the visual tokens, blind to one another.

    Attributes:
        ids: (B, L) token ids.
        positions: (B, L) each question starts where the visual tokens end.
        block: (B, L) number of the question, -1 for padding.
        answers: (B, L) bool, tokens that are to be predicted.
    """

    ids: Tensor
    positions: Tensor
    block: Tensor
    answers: Tensor
    kinds: list[list[str]]


def pack(batch: list[list[Question]], encode: Callable[[str], list[int]]) -> Turns:
    """Tokenise and pack the questions of each scene."""
    rows = []
    for questions in batch:
        ids, positions, block, answers = [], [], [], []
        for number, question in enumerate(questions):
            ask = [*encode(question.text), VOCABULARY["ASSISTANT:"]]
            reply = [*encode(question.answer), VOCABULARY["</s>"]]
            ids += ask + reply
            positions += range(len(PREFIX) + TOKENS, len(PREFIX) + TOKENS + len(ask) + len(reply))
            block += [number] * (len(ask) + len(reply))
            answers += [False] * len(ask) + [True] * len(reply)
        rows.append((ids, positions, block, answers))
    width = max(len(row[0]) for row in rows)
    fills = (VOCABULARY["<pad>"], 0, -1, False)
    columns = [torch.tensor([row[i] + [fills[i]] * (width - len(row[0])) for row in rows]) for i in range(4)]
    return Turns(*columns, kinds=[[q.type for q in questions] for questions in batch])


def language_loss(model: LlavaForConditionalGeneration, visual: Tensor, at: Tensor, turns: Turns) -> tuple[Tensor, dict[str, list[bool]]]:
    """Cross-entropy of the answers.

    Args:
        model: the MLLM.
        visual: (B, N, D) visual tokens.
        at: (B, N) raster index of each, -1 for padding.
        turns: the questions.

    Returns:
        The loss, and for each question type whether each answer was right.
    """
    embed = model.get_input_embeddings()
    batch, number = at.shape
    lead = len(PREFIX) + number
    prefix = embed(torch.tensor([VOCABULARY[t] for t in PREFIX])).expand(batch, -1, -1)
    hidden = torch.cat([prefix, visual, embed(turns.ids)], 1)
    positions = torch.cat([torch.arange(len(PREFIX)).expand(batch, -1), at.clamp(min=0) + len(PREFIX), turns.positions], 1)
    shared = torch.cat([torch.ones(batch, len(PREFIX), dtype=torch.bool), at >= 0], 1)
    block = torch.cat([torch.full((batch, lead), -2), turns.block], 1)
    seen = torch.cat([shared, turns.block >= 0], 1)
    length = hidden.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & seen[:, None]
    mask &= (block[:, None] == -2) | (block[:, None] == block[:, :, None])
    mask |= torch.eye(length, dtype=torch.bool)
    out = model.model.language_model(inputs_embeds=hidden, position_ids=positions, attention_mask=mask[:, None], use_cache=False)
    target = turns.ids[:, 1:][turns.answers[:, 1:]]
    logits = model.lm_head(out.last_hidden_state[:, lead:-1][turns.answers[:, 1:]]).float()
    hit = torch.zeros(turns.ids.shape, dtype=torch.bool)
    hit[:, 1:][turns.answers[:, 1:]] = logits.argmax(-1) == target
    right: dict[str, list[bool]] = {}
    for row, kinds in enumerate(turns.kinds):
        for number_, kind in enumerate(kinds):
            tokens = turns.answers[row] & (turns.block[row] == number_)
            right.setdefault(kind, []).append(bool(hit[row][tokens].all()))
    return F.cross_entropy(logits, target), right


def see(clip: CLIPModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch features (B, N, V) of the layer that LLaVA reads, and the pooled output (B, V)."""
    out = clip.vision_model(pixel_values=images, output_hidden_states=True)
    return out.hidden_states[-2][:, 1:], out.pooler_output


def align_loss(projected: Tensor, hot: Tensor, embedding: Tensor) -> tuple[Tensor, dict[str, float]]:
    """How far projected patches are from the words that describe them.

    Args:
        projected: (B, N, D).
        hot: (B, N, vocabulary) of ``multi_hot``.
        embedding: (vocabulary, D) word embeddings.

    Returns:
        Loss, and the accuracy per group of words.
    """
    norm = embedding.pow(2).sum(-1).mean()
    logits = (projected @ embedding.T).float() / norm  # about 1 for a word that is there, 0 for another
    wanted = hot @ embedding
    thing = hot[..., VOCABULARY["nothing"]] == 0
    error = (projected.float() - wanted).pow(2).sum(-1) / norm
    loss = error[thing].mean() + 0.3 * error[~thing].mean()
    accuracy = {}
    for name, group in WORD_GROUPS.items():
        at = [VOCABULARY[word] for word in group]
        truth, guess = hot[..., at], logits[..., at]
        asked = truth.sum(-1) > 0
        if len(group) == 1:
            loss = loss + F.binary_cross_entropy_with_logits(8 * (guess - 0.5)[thing], truth[thing])
            accuracy[name] = ((guess > 0.5) == (truth > 0))[thing].float().mean().item()
            continue
        if asked.any():
            loss = loss + F.cross_entropy(5 * guess[asked], truth[asked].argmax(-1)) * (2.0 if name == "letter" else 1.0)
            accuracy[name] = (guess.argmax(-1) == truth.argmax(-1))[asked & thing].float().mean().item()
    return loss, accuracy


class Trainer:
    """Holds the models of the three stages and a stage's resumable state."""

    def __init__(self, out: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.out, self.seed = out, seed
        self.clip = CLIPModel(clip_config())
        self.model = LlavaForConditionalGeneration(llava_config())
        for model in (self.clip, self.model):
            model.set_attn_implementation("eager")  # at this size 1.5 times as fast as sdpa on a CPU in bfloat16
        nn.init.normal_(self.model.get_input_embeddings().weight, std=EMBEDDING_STD)
        self.projector = self.model.model.multi_modal_projector
        tokenizer = build_tokenizer()
        self.encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self.encode_caption = build_tokenizer(append_eos=True)
        self.rng = random.Random(seed)

    def draw(self, stage: Stage) -> tuple[list[Layout], Tensor]:
        """Layouts of the training split and what describes their tokens, (B, N, vocabulary)."""
        layouts = [sample_layout(self.rng, "train") for _ in range(stage.scenes)]
        return layouts, torch.stack([multi_hot(describe_tokens(layout)) for layout in layouts])

    def pixels(self, layouts: Iterable[Layout]) -> Tensor:
        """Images as the processor would give them, (B, 3, H, W)."""
        images = np.stack([np.asarray(render(layout, self.rng)) for layout in layouts])
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25

    def questions(self, layouts: list[Layout], stage: Stage) -> Turns:
        """Questions about the layouts, packed."""
        return pack([sample_questions(layout, self.rng, stage.questions) for layout in layouts], self.encode)

    def language(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of stage 1."""
        layouts, hot = self.draw(stage)
        weight = self.model.get_input_embeddings().weight
        spread = max(8, 32 * step // stage.steps)  # background tokens a scene, more towards the end
        kept = [self._kept(row, spread) for row in hot]
        width = max(map(len, kept))
        at = torch.stack([F.pad(index, (0, width - len(index)), value=-1) for index in kept])
        visual = hot.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, hot.shape[-1])) @ weight
        visual = visual + 0.25 * EMBEDDING_STD * torch.randn_like(visual)
        loss, right = language_loss(self.model, visual, at, self.questions(layouts, stage))
        return loss, {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}

    def _kept(self, hot: Tensor, spread: int) -> Tensor:
        blank = (hot[:, VOCABULARY["nothing"]] > 0).nonzero().flatten()
        gone = blank[torch.randperm(len(blank))[spread:]]
        stay = torch.ones(TOKENS, dtype=torch.bool)
        stay[gone] = False
        return stay.nonzero().flatten()

    def vision(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of stage 2."""
        layouts, hot = self.draw(stage)
        patches, pooled = see(self.clip, self.pixels(layouts))
        loss, accuracy = align_loss(self.projector(patches), hot, self.model.get_input_embeddings().weight)
        contrast = self.clip_loss(layouts, pooled)
        return loss + 0.5 * contrast, {**accuracy, "clip_loss": contrast.item()}

    def clip_loss(self, layouts: list[Layout], pooled: Tensor) -> Tensor:
        """Symmetric contrastive loss of CLIP over the batch."""
        text = self.encode_caption([caption(layout, self.rng) for layout in layouts], padding=True, return_tensors="pt")
        words = self.clip.text_model(input_ids=text.input_ids, attention_mask=text.attention_mask).pooler_output
        words = F.normalize(self.clip.text_projection(words).float(), dim=-1)
        image = F.normalize(self.clip.visual_projection(pooled).float(), dim=-1)
        similarity = self.clip.logit_scale.exp().clamp(max=50) * image @ words.T
        same = torch.arange(len(layouts))
        return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2

    def joint(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of stage 3."""
        layouts, hot = self.draw(stage)
        patches, pooled = see(self.clip, self.pixels(layouts))
        visual = self.projector(patches)
        aligned, accuracy = align_loss(visual, hot, self.model.get_input_embeddings().weight.detach())
        at = torch.arange(TOKENS).expand(len(layouts), -1)
        loss, right = language_loss(self.model, visual, at, self.questions(layouts, stage))
        share = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
        total = loss + 0.1 * aligned + 0.1 * self.clip_loss(layouts, pooled)
        return total, {**share, "answer_loss": loss.item(), "seen_letter": accuracy.get("letter", 0.0), "seen_shape": accuracy["shape"]}

    def groups(self, name: str) -> list[dict[str, object]]:
        """Parameters that a stage trains, with the factor on its learning rate."""
        words = self.model.get_input_embeddings().weight
        llama = [p for p in self.model.model.language_model.parameters() if p is not words]
        sight = [*self.clip.parameters(), *self.projector.parameters()]
        trained = {
            "language": [(llama, 1.0)],
            "vision": [(sight, 1.0)],
            "joint": [(llama, 1.0), ([words], 0.5), (sight, 0.5)],
        }
        return [{"params": parameters, "factor": factor} for parameters, factor in trained[name]]

    def run(self, name: str) -> None:
        """Run a stage to its end, from its checkpoint if there is one."""
        stage, groups = STAGES[name], self.groups(name)
        optimizer = torch.optim.AdamW(groups, lr=stage.rate, weight_decay=0.02, betas=(0.9, 0.98))
        self.out.mkdir(parents=True, exist_ok=True)
        file, first, spent, smooth = self.out / f"{name}.pt", 1, 0.0, dict[str, float]()
        if file.exists():
            saved = torch.load(file, weights_only=False)
            self.load(saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            first, spent, smooth = saved["step"] + 1, saved["seconds"], saved["smooth"]
        start = time.monotonic() - spent
        for step in range(first, stage.steps + 1):
            self.rng.seed(f"{self.seed}/{name}/{step}")
            torch.manual_seed(hash((self.seed, step)) % 2**31)
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * group["factor"] * schedule(step, stage.steps)
            with torch.autocast("cpu", torch.bfloat16):
                loss, readings = getattr(self, name)(stage, step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            for key, value in {"loss": loss.item(), **readings}.items():
                smooth[key] = 0.97 * smooth.get(key, value) + 0.03 * value
            if step % SAVE_EVERY == 0 or step == stage.steps or step in (10, 50):
                seconds = time.monotonic() - start
                line = {"stage": name, "step": step, "seconds": round(seconds), **{k: round(v, 3) for k, v in smooth.items()}}
                with (self.out / f"{name}.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                state = {"weights": self.weights(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds, "smooth": smooth}
                torch.save(state, file.with_suffix(".tmp"))
                file.with_suffix(".tmp").replace(file)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights of both models by part."""
        return {"clip": self.clip.state_dict(), "llava": self.model.state_dict()}

    def load(self, weights: dict[str, dict[str, Tensor]], *, parts: tuple[str, ...] = ("clip", "llava"), only: str = "") -> None:
        """Load parts; with ``only``, those LLaVA weights whose names contain it."""
        if "clip" in parts:
            self.clip.load_state_dict(weights["clip"])
        if "llava" in parts:
            chosen = {k: v for k, v in weights["llava"].items() if only in k}
            self.model.load_state_dict(chosen, strict=not only)


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up over 100 steps, flat, cosine to 2 % over the last 40 %."""
    if step <= 0.6 * steps:
        return min(1.0, step / 100)
    return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * (step - 0.6 * steps) / (0.4 * steps)))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of checkpoints and logs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        trainer = Trainer(arguments.out, arguments.seed)
        if name == "joint":
            load = lambda stage: torch.load(arguments.out / f"{stage}.pt", weights_only=False)["weights"]  # noqa: E731
            trainer.load(load("language"), parts=("llava",))
            sight = load("vision")
            trainer.load(sight, parts=("clip",))
            trainer.load(sight, parts=("llava",), only="multi_modal_projector")
        trainer.run(name)


if __name__ == "__main__":
    main()
