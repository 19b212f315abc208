"""The judge's command: how well the demo edits, as a table or as JSON.

    python -m vellumd.demo.judge --n 200 --steps 8 [--preset fastest] [--json]

Without `--preset` the base weights run without a LoRA, with the steps and the guidance of
the model's card. `--against` has a second preset sit the same exam on the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

import vellumd
from vellumd import errors, model_card
from vellumd.demo import exam
from vellumd.demo.world import KINDS
from vellumd.models import REQUEST_TIERS, Frozen, LoraRef
from vellumd.presets import SHIPPED

if TYPE_CHECKING:
    from vellumd.engine.library import QwenImageEditEngine


class Recipe(Frozen):
    """How an exam is sat: what an edit is asked with beside pictures, prompt and seed."""

    preset: str | None
    steps: int
    true_cfg_scale: float
    loras: tuple[str, ...]

    @classmethod
    def of(
        cls, preset: str | None = None, steps: int | None = None, cfg: float | None = None
    ) -> Recipe:
        """That of a shipped `preset`, or of the model's card; `steps` and `cfg` win over it."""
        known: Any = SHIPPED[preset] if preset else model_card.read(model_card.DEMO)
        return cls(
            preset=preset,
            steps=known.steps if steps is None else steps,
            true_cfg_scale=known.true_cfg_scale if cfg is None else cfg,
            loras=tuple(lora.name for lora in known.loras) if preset else (),
        )

    def on(self, engine: QwenImageEditEngine) -> exam.Edit:
        """The recipe on the normal engine, whose warning that it is a demo goes unheard."""

        def edit(pictures: list[Image.Image], prompt: str, seed: int) -> Image.Image:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", re.escape(errors.WARNINGS["demo_model"]))
                made: Image.Image = engine.generate(
                    pictures,
                    prompt,
                    seed=seed,
                    num_steps=self.steps,
                    true_cfg_scale=self.true_cfg_scale,
                    loras=[LoraRef(name=name) for name in self.loras],
                )
            return made

        return edit


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the exam and tell the result; progress goes to standard error."""
    args = _parser().parse_args(arguments)
    recipes = {"recipe": Recipe.of(args.preset, args.steps, args.cfg)}
    if args.against:
        recipes["against"] = Recipe.of(args.against)
    questions = exam.draw(args.n, args.seed, held_out=args.held_out, kinds=args.kinds)
    settings = {"tier": args.tier} if args.tier else {}
    engine, tiers = opened(settings)
    ran = args.tier if args.tier in (*tiers, "reference") else tiers[0]
    if args.tier and ran != args.tier:
        print(f"{args.tier} is not there; {ran} is judged", file=sys.stderr)
    told = [*recipes.values()]
    if args.jobs == 1:
        sittings = [exam.sit(questions, recipe.on(engine), _Progress(args.n)) for recipe in told]
    else:
        seat = partial(seated, settings, told)
        sittings = exam.share(questions, seat, args.jobs, _Progress(args.n))
    engine.unload()
    first = sittings[0]
    score = first.score
    result = {
        "success": score.success,
        "interval": score.interval,
        "kinds": {kind: score.model_dump() for kind, score in first.by_kind().items()},
        "n": args.n,
        "steps": recipes["recipe"].steps,
        "seed": args.seed,
        "held_out": args.held_out,
        "tier": ran,
        **{name: recipe.model_dump() for name, recipe in recipes.items()},
        "seconds_per_edit": round(float(first.seconds.mean()), 3),
        "version": vellumd.__version__,
    }
    if args.against:
        # The preset is what is looked at, so it is the second of the pair.
        result["comparison"] = exam.compare(sittings[1], first).model_dump()
    print(json.dumps(result, indent=1) if args.json else table(result))


def opened(settings: Mapping[str, str]) -> tuple[QwenImageEditEngine, tuple[str, ...]]:
    """The demo, loaded with `settings`, and its tiers."""
    engine = vellumd.QwenImageEditEngine(model_card.DEMO, **settings)
    return engine, engine.load().tiers


def seated(settings: Mapping[str, str], recipes: Sequence[Recipe]) -> exam.Sit:
    """A process of its own, ready to sit parts of an exam by each of `recipes`."""
    engine, _tiers = opened(settings)
    edits = [recipe.on(engine) for recipe in recipes]
    return lambda questions: [exam.sit(questions, edit) for edit in edits]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vellumd.demo.judge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--n", type=_positive, default=200, help="edits, spread over the kinds")
    parser.add_argument("--kinds", type=_kinds, default=tuple(KINDS), help="with commas between")
    parser.add_argument("--steps", type=_steps, help="instead of the recipe's")
    parser.add_argument("--cfg", type=_guidance, help="guidance, instead of the recipe's")
    parser.add_argument("--preset", choices=SHIPPED)
    parser.add_argument("--against", choices=SHIPPED, help="compare with this preset, in pairs")
    parser.add_argument("--tier", choices=("reference", *REQUEST_TIERS))
    parser.add_argument("--seed", type=_whole, default=0, help="of scenes and noise")
    parser.add_argument("--held-out", action="store_true", help="phrasings unseen in training")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes that share the edits")
    parser.add_argument("--json", action="store_true")
    return parser


def _number(read: Callable[[str], float], least: float, most: float, what: str) -> Any:
    """What argparse reads an option with: `what` from `least` to `most`."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (found := read(text)) <= most:
                return found
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least} to {most}")

    return number


_positive = _number(int, 1, 10**6, "a whole number")
_whole = _number(int, 0, 2**32 - 1, "a whole number")
_steps = _number(int, 1, 100, "a whole number")
_guidance = _number(float, 0, 20, "a number")


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))  # twice the same would ask the same edits twice
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"there is no kind {unknown[0]!r}; {', '.join(KINDS)}")
    return kinds


def table(result: Mapping[str, Any]) -> str:
    """`main`'s result as people read it."""
    rows = [("kind", "success", "n", "95 %")]
    kinds = {**result["kinds"], "all": result}
    for name, score in kinds.items():
        low, high = score["interval"]
        rows.append((name, f"{score['success']:.3f}", str(score["n"]), f"{low:.3f}-{high:.3f}"))
    lines = [f"{a:<12}{b:>8}{c:>7}  {d}" for a, b, c, d in rows]
    recipe = result["recipe"]
    phrasings = "phrasings held out of training" if result["held_out"] else "phrasings of training"
    lines.append(
        f"{recipe['preset'] or 'base weights'}, {recipe['steps']} steps, "
        f"guidance {recipe['true_cfg_scale']:g}, tier {result['tier']}, {phrasings}, "
        f"seed {result['seed']}, {result['seconds_per_edit']:.2f} s an edit"
    )
    if pair := result.get("comparison"):
        low, high = pair["interval"]
        lines.append(
            f"against {result['against']['preset']}: {pair['lost']} lost, {pair['gained']} gained, "
            f"difference {pair['difference']:+.3f} ({low:+.3f} to {high:+.3f}), "
            f"PSNR {pair['psnr']:.1f} dB, 95 % above {pair['psnr_low']:.1f} dB"
        )
    return "\n".join(lines)


class _Progress:
    """Counts edits on standard error, on one line of a terminal or each tenth of the way."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._line = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        if self._line:
            end = "\n" if done == self._n else ""
            print(f"\r{done} of {self._n} edits", end=end, file=sys.stderr, flush=True)
        elif done * 10 // self._n > (done - 1) * 10 // self._n:
            print(f"{done} of {self._n} edits", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
