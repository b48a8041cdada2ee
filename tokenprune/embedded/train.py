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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlavaForConditionalGeneration

from tokenprune.embedded.model import TEXT_POSITIONS, WEIGHTS, build_processor, clip_config, llava_config, see
from tokenprune.embedded.questions import sample_questions
from tokenprune.embedded.scenes import Layout, render, sample_layout
from tokenprune.embedded.symbols import TOKENS, align_loss, caption, describe_tokens, multi_hot, shown_tokens
from tokenprune.embedded.tokenizer import build_tokenizer
from tokenprune.embedded.turns import Turns, language_loss, pack

SAVE_EVERY = 100
EMBEDDING_STD = 0.1


@dataclass(frozen=True)
class Stage:
    """How long a stage runs and how: steps, scenes a step, questions a scene, peak learning rate."""

    steps: int
    scenes: int
    questions: int
    rate: float


STAGES = {
    "language": Stage(steps=2400, scenes=32, questions=12, rate=1.5e-3),
    "vision": Stage(steps=2600, scenes=32, questions=0, rate=1.5e-3),
    "joint": Stage(steps=1200, scenes=16, questions=16, rate=6e-4),
}


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

    def draw(self, stage: Stage, diverse: float = 0.0) -> tuple[list[Layout], Tensor]:
        """Layouts of the training split, a share of them diverse, and what their tokens show, (B, N, vocabulary)."""
        layouts = [sample_layout(self.rng, "train", diverse=i < diverse * stage.scenes) for i in range(stage.scenes)]
        return layouts, torch.stack([multi_hot(describe_tokens(layout)) for layout in layouts])

    def pixels(self, layouts: Iterable[Layout]) -> Tensor:
        """Images as the processor would give them, (B, 3, H, W)."""
        images = np.stack([np.asarray(render(layout, self.rng)) for layout in layouts])
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25

    def questions(self, layouts: list[Layout], stage: Stage) -> Turns:
        """Questions about the layouts, packed."""
        return pack([sample_questions(layout, self.rng, stage.questions) for layout in layouts], self.encode)

    def language(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of stage 1; at first on diverse scenes only, where guessing what goes with what does not pay."""
        layouts, hot = self.draw(stage, diverse=1.0 if step < 0.4 * stage.steps else 0.3)
        weight = self.model.get_input_embeddings().weight
        kept = [shown_tokens(row, step / stage.steps) for row in hot]
        width = max(map(len, kept))
        at = torch.stack([F.pad(index, (0, width - len(index)), value=-1) for index in kept])
        visual = hot.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, hot.shape[-1])) @ weight
        visual = visual + 0.25 * EMBEDDING_STD * torch.randn_like(visual)
        loss, right = language_loss(self.model, visual, at, self.questions(layouts, stage))
        return loss, {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}

    def vision(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of stage 2: projected patches against the words that describe them, and CLIP's."""
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
        """Loss of stage 3: answers from pixels, with the losses of stage 2 at a tenth."""
        layouts, hot = self.draw(stage)
        patches, pooled = see(self.clip, self.pixels(layouts))
        visual = self.projector(patches)
        aligned, accuracy = align_loss(visual, hot, self.model.get_input_embeddings().weight.detach())
        at = torch.arange(TOKENS).expand(len(layouts), -1)
        loss, right = language_loss(self.model, visual, at, self.questions(layouts, stage))
        share = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
        total = loss + 0.1 * aligned + 0.1 * self.clip_loss(layouts, pooled)
        return total, {
            **share,
            "answer_loss": loss.item(),
            "seen_letter": accuracy.get("letter", 0.0),
            "seen_shape": accuracy["shape"],
        }

    def groups(self, name: str) -> list[dict[str, Any]]:
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
        state = self.resume(name, optimizer)
        start = time.monotonic() - state["seconds"]
        for step in range(state["step"] + 1, stage.steps + 1):
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
                state["smooth"][key] = 0.97 * state["smooth"].get(key, value) + 0.03 * value
            if step % SAVE_EVERY == 0 or step == stage.steps:
                self.save(name, {**state, "step": step, "seconds": time.monotonic() - start}, optimizer)

    def resume(self, name: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Load a stage's checkpoint: the step, seconds and smoothed readings that it had reached."""
        file = self.out / f"{name}.pt"
        if not file.exists():
            return {"step": 0, "seconds": 0.0, "smooth": {}}
        saved: dict[str, Any] = torch.load(file, weights_only=False)
        self.clip.load_state_dict(saved["clip"])
        self.model.load_state_dict(saved["llava"])
        optimizer.load_state_dict(saved["optimizer"])
        return {key: saved[key] for key in ("step", "seconds", "smooth")}

    def save(self, name: str, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Write a line of the log and the checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        smooth = {key: round(value, 3) for key, value in state["smooth"].items()}
        line = {"stage": name, "step": state["step"], "seconds": round(state["seconds"]), **smooth}
        with (self.out / f"{name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        weights = {"clip": self.clip.state_dict(), "llava": self.model.state_dict()}
        file = self.out / f"{name}.pt"
        torch.save({**state, **weights, "optimizer": optimizer.state_dict()}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    def start_from(self, language: str, vision: str) -> None:
        """Put together what two stages have learned: the Llama of one, the CLIP and the projector of the other."""
        llama, sight = (torch.load(self.out / f"{name}.pt", weights_only=False) for name in (language, vision))
        self.clip.load_state_dict(sight["clip"])
        projector = {key: value for key, value in sight["llava"].items() if "multi_modal_projector" in key}
        self.model.load_state_dict({**llama["llava"], **projector})

    def export(self, folder: Path) -> None:
        """Write the trained models as Hugging Face checkpoints in float16, with their processor, tokenizer and log."""
        self.model.model.vision_tower.load_state_dict(self.clip.vision_model.state_dict())
        for model in (self.clip, self.model):
            model.set_attn_implementation("sdpa")
        self.model.half().save_pretrained(folder)
        build_processor().save_pretrained(folder)
        self.clip.half().save_pretrained(folder / "clip")
        build_tokenizer(append_eos=True, max_length=TEXT_POSITIONS).save_pretrained(folder / "clip")
        logs = "".join((self.out / f"{name}.jsonl").read_text() for name in STAGES)
        (folder / "training_log.jsonl").write_text(logs)


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up over 100 steps, flat, cosine to 2 % over the last 40 %."""
    if step <= 0.6 * steps:
        return min(1.0, step / 100)
    return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * (step - 0.6 * steps) / (0.4 * steps)))


def main() -> None:
    """Entry point of ``python -m tokenprune.embedded.train``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, "export", "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of checkpoints and logs")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that the trained model is written to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in [*STAGES, "export"] if arguments.stage == "all" else [arguments.stage]:
        trainer = Trainer(arguments.out, arguments.seed)
        if name == "export":
            trainer.start_from("joint", "joint")
            trainer.export(arguments.weights)
            continue
        if name == "joint":
            trainer.start_from("language", "vision")
        trainer.run(name)


if __name__ == "__main__":
    main()
