"""The words of docs/evaluation.md around its numbers; `page` fills in what is in braces."""

INTRODUCTION = """# Evaluation

*Made by `python -m benchmarks.evaluation`. Every number below, with those of every subject, is in
`benchmarks/records/evaluation-*.json`.*

{subjects} subjects that the embedded model has never seen, five pictures each. Every method learns them on the same
base model, from the same crops and masks, in at most {plan.steps} steps of {plan.batch_size}; and every method draws
the same {prompts} prompts from the same noise, {plan.seeds} seeds each ({plan.ablation_seeds} for ablations). All of it
on a model of 14 million parameters that draws stickers: how much of it holds for a model of a billion cannot be told
from here.
"""

ANSWER = """## Answer

*One Perfusion file is drawn with several settings ([drawing](runtime.md)). Its **bias** says how alike a token must
be to the learned word for the edit to reach it, its **lock** whose keys the word has: under the local one each token
takes the superclass's as far as it is edited, under the global one the whole prompt is read as if it spoke of the
superclass. Its **strength** mixes it with the superclass, 0 to 1, and until its **start**, a share of the noise
levels, the superclass is drawn in its place. The file's own setting is the local lock with a bias of 0.75. All
settings together are its **front**: for each likeness the most of the prompt that one of them keeps. The aim: the
front above every baseline of at most ten times the bytes, the plain superclass untouched, and pairs of concepts
recognised in 60 % of the pictures.*

"""

TABLE = """## Table

![Image similarity against text similarity](pictures/evaluation.svg)

*Each line is one set of files, drawn with several biases, strengths or starts, of a LoRA with several scales. (0, 1)
is the base model drawing the plain noun, (1, 0) the subject's own pictures held against the prompts. True pictures of
the subject in the prompts' places, which nobody has learned from, say where a perfect method would be. Bars, at a
bias of 0.75 and at what the baselines were trained with, are 95 % intervals over the subjects.*

| method | saved bytes | core-seconds | image similarity | text similarity | harmonic mean | place | noun | \
both things | other colour | drift of the superclass |
|---|---|---|---|---|---|---|---|---|---|---|
"""

FRONT = """## Against the front

A baseline, with one of its settings, lies below the front if one Perfusion file, at some setting of its bias, lock,
strength and start, has at least its image similarity and more text similarity. Along a slider the front is a straight
line from setting to setting; those of strength and start begin at the base model, which is a concept of strength 0, or
one that never comes in. *On it* is what is nearer to it than {least}, which measuring anew may change; the bound was
set when the results were known. *Sure* is the share of resamples of the subjects in which a baseline lies below.

| baseline | times the bytes | below the front | sure | text similarity that the front has more |
|---|---|---|---|---|
"""

PAIRS = """## Two subjects in one picture

Each trained alone, then asked for together. *Both seen*: the probe's two likeliest nouns are the two asked for.
*Alike*: image similarity, the mean of the two and the lesser of the two. Each method has a row for its default
setting and, where another did better, for the one in which most pairs are seen of those at least half as alike, which
was picked on these very pictures; Perfusion one more for the setting that was chosen beforehand, on pairs of four
other subjects.

| method | how they are combined | both seen | alike | the lesser |
|---|---|---|---|---|
"""

ABLATIONS = """## What each part is for

Each row changes one part. The difference to Perfusion without selection (first row) is paired over the subjects, all on
the same prompts and seeds at the default bias; an interval that holds 0 tells nothing.

| variant | image similarity | text similarity | harmonic mean | difference of it | place | noun |
|---|---|---|---|---|---|---|
"""

LEAKAGE = """## Attention leakage

The share of the attention to the concept's token that falls outside the object, averaged over noise levels, layers and
heads. Attention spread evenly over the true pictures would have {evenly} there. Drawings in which no object was found
are left out, {locked} with locked and {trained} with trained keys.

| pictures | the base model's word | locked keys | trained keys | trained − locked, paired over the subjects |
|---|---|---|---|---|
"""

MEASURES = """## How it is measured

- **Image similarity** is measured inside the object's mask: what is outside is grey, the rest is cut to a square and
  embedded by the embedded model's scorer. 0 is the mean of the base model's own drawings of the plain noun, from the
  same prompts and seeds; 1 is the mean of the subject's five pictures; a picture counts by its place along that line.
  New true pictures of the subjects reach {found}, with their true masks {exact}.
- **The mask** of a drawn picture is the base model's attention to the noun. On true pictures, whose masks are known,
  the two overlap by {overlap} (intersection over union).
- **Text similarity** is the scorer's cosine of the whole picture with the prompt, the noun in the subject's place. 0 is
  what the subject's own pictures score on these prompts, 1 what the base model's drawings score. Likeness and text are
  taken over the {looks} prompts that leave the subject its look; the {others} that ask for another colour are in the
  column *other colour*.
- **The harmonic mean** is that of both similarities of a subject, each held between 0 and 1.
- **Place, noun, both things, other colour** are answers of classifiers trained on the world's scenes
  (`docs/pocket.md`).
- **Drift** is the root mean square difference, in levels of 255, between the plain noun drawn under the method's
  weights and the base model's picture, from the same noise and by the same engine. Two of the base model's own pictures
  of one prompt, from different noise, give the scale.
- **Intervals** are 95 % bootstrap intervals over the subjects, for pairs over the pairs: these are the sample, not the
  pictures. With this few they are rather too narrow, and the prompts and the noise, the same for all methods, are held
  fixed: what other noise would give they do not say.
- Perfusion is drawn by `perfusion.runtime`, the rest by diffusers' pipeline; the base model's pictures by the two agree
  to at least {engines} dB.
- **Core-seconds** are those that one core worked, from pictures to file, without the prior pictures that Custom
  Diffusion and DreamBooth with prior need once for each noun; Perfusion's selection of the step is counted. **Bytes**
  are what a user of the method keeps, in float16.
- **What only Perfusion has**: as shipped it selects its step for each subject with the very scorer that measures here,
  on {selecting} prompts, {shared} of which are also among these, from other seeds. What that is worth is in the
  ablations; the row *tuned like the others* is without it. Two things are not as shipped: {steps} steps, where
  `perfusion-train` takes {shipped}, and the true masks, which all methods are given, where it finds its own.
- **What is turned in drawing**: one Perfusion file has {settings} settings of lock, bias, strength and start, one
  LoRA {scales} of scale and start, one learned word {words} of start. Started late means that until then the base
  model draws the plain noun: a setting of ours, for LoRA a callback that takes the adapters out of the pipeline and
  puts them in again, for Textual Inversion one that exchanges the prompt. It was added when first results of four of
  these subjects had shown that second things get lost; its values are an even grid. Perfusion's strengths below 1, at
  the scales of a LoRA below 1, were added when all subjects had been evaluated without: only the LoRAs had been turned
  down until then. Whole weights have nothing to turn.
- **The baselines** are trained with AdamW as diffusers' examples are, LoRA by peft. Their error counts inside the
  object's mask as Perfusion's does, unless the tuning found that they do better without, as in their papers. Half of
  each batch of Custom Diffusion and of DreamBooth with prior are the base model's own pictures of the superclass.
"""

TUNING = """## The tuning

Every method has the same budget: three rates, up to {more} more beyond them as long as the best is at the edge of what
was tried, the best of them once more with an error that counts in the whole picture, and each time the checkpoints
after {checkpoints} steps, on two subjects and {prompts} prompts that are not the evaluation's; the best mean harmonic
mean is used for all subjects. Perfusion as shipped is not tuned; its row *tuned* had the same budget, in factors of its
two rates. A best rate that is still at the edge says that others might have done better. More steps than these were not
given to any method, and without masks, where a method learns more slowly, no other rate.

| method | rates | best rate | steps | at the edge | score with masks | without |
|---|---|---|---|---|---|---|
"""

PICTURES = """## The pictures

Nothing selected: the first seed of every prompt, every method at its default setting.

![One prompt, every method](pictures/evaluation-overview.png)

"""
