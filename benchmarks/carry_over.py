"""python benchmarks/carry_over.py: do concepts carry over from a model to the same one with a LoRA for few steps?

Such a LoRA is distilled here out of the embedded model: a few hundred drawings in 20 steps with guidance are written
down step by step, and the LoRA learns to go from every fifth place to the fifth after it, without guidance (after
"Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512). It is saved by diffusers and peft,
added at export, and told by its name as one for four steps. Then `perfusion.sweep.evaluation` scores concepts on

- the plain model, in 20 steps and in the 4 without guidance that the LoRA is for,
- the model with the LoRA, which they were not trained on,
- the model with the LoRA, trained anew on it.

Likeness runs from the drawings of the superclass by the same model (0) to the subject's pictures (1). Concepts of the
plain model are the samples that ship with it. What is made is kept in `--work`, and an interrupted run goes on there.
`--tiny` does all of it in little, and writes no record.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record
from perfusion import Concept
from perfusion.base.base_model import load_base
from perfusion.base.lora import LoRAFile
from perfusion.base.model_options import ModelOptions
from perfusion.commands.sweep import open_judges, subject_pictures
from perfusion.embedded import bundle_path, model_path
from perfusion.export import export_bundle
from perfusion.runtime import Runtime
from perfusion.sweep.evaluation import Evaluator
from perfusion.training import TrainingConfig, train_concept

LONG, SHORT = 20, 4
"""Steps of the teacher, and of the student."""
RANK, BATCH, RATE = 16, 16, 3e-4
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
]
"""What LCM's LoRA changes."""
NAME = "hyper-sd-pocket-4steps-lora.safetensors"
"""By which the export knows what it is drawn with."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done."""

    drawings: int = 96
    steps: int = 400
    seeds: int = 2
    training_steps: int = 100
    subjects: tuple[str, ...] = ("pink-cake", "gold-hat", "school-bus")


TINY = Size(drawings=4, steps=4, seeds=1, training_steps=2, subjects=("pink-cake",))


@torch.no_grad()
def trajectories(pipeline: Any, count: int) -> tuple[Tensor, Tensor]:
    """Latents at the student's places, (count, SHORT + 1, channels, height, width), and their texts' encodings."""
    captions = (bundle_path() / "captions.txt").read_text("utf-8").splitlines()
    prompts = random.Random(0).sample(captions, count)
    generator, latents, encodings = torch.Generator().manual_seed(0), [], []
    for start in range(0, count, BATCH):
        batch = prompts[start : start + BATCH]
        visited: list[Tensor] = []

        def note(
            _: Any, __: int, ___: Any, tensors: dict[str, Any], visited: list[Tensor] = visited
        ) -> dict[str, Any]:
            visited.append(tensors["latents"])
            return tensors

        shape = (len(batch), pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
        noise = torch.randn(shape, generator=generator)
        call = {"num_inference_steps": LONG, "guidance_scale": 5.0, "output_type": "latent"}
        pipeline(batch, latents=noise, callback_on_step_end=note, **call)
        latents.append(torch.stack([noise, *visited][:: LONG // SHORT], dim=1))
        encodings.append(pipeline.encode_prompt(batch, "cpu", 1, False)[0])
    return torch.cat(latents), torch.cat(encodings)


def jumps(scheduler: Any, latents: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each of the student's steps its timestep, where it begins, and the velocity that leads where it shall end.

    DDIM goes from x to x' = sqrt(a') x0 + sqrt(1 - a') e with x0 = sqrt(a) x - sqrt(1 - a) v and
    e = sqrt(a) v + sqrt(1 - a) x, so that x' is linear in v.
    """
    scheduler.set_timesteps(SHORT)
    alphas = scheduler.alphas_cumprod
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        before = timestep - scheduler.config.num_train_timesteps // SHORT
        a, b = alphas[timestep], alphas[before] if before >= 0 else scheduler.final_alpha_cumprod
        own = (a * b).sqrt() + ((1 - a) * (1 - b)).sqrt()
        velocity = (a * (1 - b)).sqrt() - (b * (1 - a)).sqrt()
        yield timestep, latents[:, index], (latents[:, index + 1] - own * latents[:, index]) / velocity


def distil(folder: Path, size: Size) -> dict[str, Any]:
    """Write the LoRA into `folder`; what it took."""
    from peft import LoraConfig, get_peft_model_state_dict

    started = time.perf_counter()
    pipeline = StableDiffusionPipeline.from_pretrained(model_path(), safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents, encodings = trajectories(pipeline, size.drawings)
    tasks = list(jumps(pipeline.scheduler, latents))
    unet = pipeline.unet
    unet.requires_grad_(False)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.steps)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(size.steps):
        timestep, noisy, velocity = tasks[step % SHORT]
        rows = torch.randint(len(noisy), (BATCH,), generator=generator)
        prediction = unet(noisy[rows], timestep, encodings[rows]).sample
        loss = torch.nn.functional.mse_loss(prediction, velocity[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), weight_name=NAME
    )
    window = max(SHORT, size.steps // 10 // SHORT * SHORT)  # each of the student's steps as often
    return {
        "what": "the LoRA", "rank": RANK, "drawings": size.drawings, "steps": size.steps,
        "seconds": round(time.perf_counter() - started, 1),
        "loss_at_first": round(sum(losses[:window]) / window, 4),
        "loss_at_last": round(sum(losses[-window:]) / window, 4),
    }  # fmt: skip


def sample(subject: str) -> Concept:
    """The concept that ships with the plain model."""
    return Concept.load(bundle_path() / "concepts" / f"{subject}.safetensors")


def trained_anew(subject: str, options: ModelOptions, path: Path, size: Size) -> Concept:
    """The same trained on the model with its LoRA, as `perfusion-train` does; kept in a file."""
    if path.exists():
        return Concept.load(path)
    pictures, like = ROOT / "examples" / "subjects" / subject, sample(subject)
    config = TrainingConfig(
        superclass=like.superclass, token=like.token, masks=pictures / "masks", steps=size.training_steps,
        select="last",
    )  # fmt: skip
    concept = train_concept(pictures, config, model=load_base(None, options=options))
    concept.save(path)
    return concept


def scores(
    arm: str, bundle: Path | None, concepts: dict[str, Concept], size: Size, **drawing: Any
) -> Iterator[dict[str, Any]]:
    """A row for each concept, drawn with a bundle."""
    with Runtime(bundle, provider="cpu") as runtime:
        usual = runtime.bundle.defaults
        steps = {
            "num_inference_steps": usual.num_inference_steps,
            "guidance_scale": usual.guidance_scale,
        } | drawing
        evaluator = Evaluator(runtime, *open_judges(None, runtime), seeds=range(size.seeds), options=steps)
        for name, concept in concepts.items():
            folder = ROOT / "examples" / "subjects" / name
            score = evaluator.subject(name, concept, subject_pictures(folder, folder / "masks"))
            row = {
                "what": arm, "subject": name, "steps": steps["num_inference_steps"],
                "guidance_scale": steps["guidance_scale"], "likeness": round(score.likeness, 3),
                "prompt": round(score.prompt, 3), "verdict": score.verdict.as_dict(),
            }  # fmt: skip
            print(row, flush=True)
            yield row


def main() -> int:
    """Distil, export, train, draw, score, record."""
    parser = argparse.ArgumentParser(
        description="Do concepts carry over to a model with a LoRA for few steps?"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "carry-over", metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="all of it in little, without a record")
    args = parser.parse_args()
    size = TINY if args.tiny else Size()
    lora, bundle = args.work / NAME, args.work / "bundle"
    args.work.mkdir(parents=True, exist_ok=True)
    facts = args.work / "distilled.json"
    if not facts.exists():
        facts.write_text(json.dumps(distil(args.work, size)))
    rows = [json.loads(facts.read_text())]
    print(rows[0], flush=True)
    options = ModelOptions(loras=(LoRAFile(path=lora),))
    if not bundle.exists():
        export_bundle(None, bundle, options=options)
    plain = {name: sample(name) for name in size.subjects}
    rows += scores("plain model", None, plain, size)
    rows += scores("plain model, few steps", None, plain, size, num_inference_steps=SHORT, guidance_scale=1.0)
    rows += scores("with the LoRA, carried over", bundle, plain, size)
    if not args.tiny:
        write_record("carry-over", rows)  # so that an interrupted run leaves what it has
    anew = {
        name: trained_anew(name, options, args.work / f"{name}.safetensors", size) for name in size.subjects
    }
    rows += scores("with the LoRA, trained on it", bundle, anew, size)
    if not args.tiny:
        print(write_record("carry-over", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
